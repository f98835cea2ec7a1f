//! Reading a model by reference out of a mapped file.
