//! Writing a model: atomically, and the same bytes for the same model.
