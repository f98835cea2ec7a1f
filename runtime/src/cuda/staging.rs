//! Bytes between the host and the block of a plan: through pinned memory, on a stream of their own.
//!
//! Two slots take turns, so that the host fills one while the other is copied. A copy into the block waits
//! for the work that may still read what was there; later work waits for the copy.

use super::driver::{Context, DeviceError, DeviceMemory, Event, PinnedMemory, Stream};
use std::cell::RefCell;
use std::sync::Arc;

/// The least and the most bytes of a slot.
const SLOT: (usize, usize) = (1 << 16, 1 << 26);

/// A slot, and the last copy that used it.
#[derive(Debug)]
struct Slot {
    memory: PinnedMemory,
    copied: Event,
}

/// The slots and the stream of the copies.
#[derive(Debug)]
pub struct Staging {
    stream: Stream,
    slots: [Slot; 2],
    next: usize,
    /// What the work has been given so far; copies wait for it.
    worked: Event,
    /// Where bytes come back.
    back: RefCell<PinnedMemory>,
}

impl Staging {
    /// Slots for tensors of up to so many bytes, where that is not beyond reason; larger ones go in pieces.
    ///
    /// # Errors
    /// [`DeviceError`] where the host's memory is not enough.
    pub fn new(context: &Arc<Context>, largest: usize) -> Result<Self, DeviceError> {
        let bytes = largest.clamp(SLOT.0, SLOT.1);
        let slot = || -> Result<Slot, DeviceError> {
            Ok(Slot {
                memory: PinnedMemory::new(context, bytes)?,
                copied: Event::new(context)?,
            })
        };
        Ok(Staging {
            stream: Stream::new(context)?,
            slots: [slot()?, slot()?],
            next: 0,
            worked: Event::new(context)?,
            back: RefCell::new(PinnedMemory::new(context, bytes)?),
        })
    }

    /// The bytes of a slot.
    pub fn slot_bytes(&self) -> usize {
        self.slots[0].memory.bytes().len()
    }

    /// Lets copies from now on wait for what a stream has been given so far.
    ///
    /// # Errors
    /// [`DeviceError`] where the driver refuses.
    pub fn after(&mut self, work: &Stream) -> Result<(), DeviceError> {
        self.worked.record(work)
    }

    /// Has a span of a block filled by its caller, of at most [`Staging::slot_bytes`]; work enqueued later
    /// sees it.
    ///
    /// # Errors
    /// [`DeviceError`] where the span does not fit, or the device fails.
    pub fn fill(
        &mut self,
        block: &DeviceMemory,
        at: usize,
        bytes: usize,
        write: &mut dyn FnMut(&mut [u8]),
        work: &Stream,
    ) -> Result<(), DeviceError> {
        let slot = &mut self.slots[self.next];
        self.next = 1 - self.next;
        slot.copied.synchronize()?;
        let place = slot.memory.bytes_mut().get_mut(..bytes);
        write(place.ok_or_else(|| DeviceError {
            call: "a copy",
            code: format!("{bytes} bytes, more than a slot holds"),
        })?);
        self.stream.wait(&self.worked)?;
        block.write(at, &slot.memory, bytes, &self.stream)?;
        slot.copied.record(&self.stream)?;
        work.wait(&slot.copied)
    }

    /// Copies bytes into a block, in pieces where they are many.
    ///
    /// # Errors
    /// [`DeviceError`] where they do not fit, or the device fails.
    pub fn write(
        &mut self,
        block: &DeviceMemory,
        at: usize,
        bytes: &[u8],
        work: &Stream,
    ) -> Result<(), DeviceError> {
        let mut at = at;
        for piece in bytes.chunks(self.slot_bytes()) {
            let mut write = |place: &mut [u8]| place.copy_from_slice(piece);
            self.fill(block, at, piece.len(), &mut write, work)?;
            at += piece.len();
        }
        Ok(())
    }

    /// Copies bytes out of a block, behind all work that a stream has.
    ///
    /// # Errors
    /// [`DeviceError`] where they do not lie in it, or the device fails.
    pub fn read(
        &self,
        block: &DeviceMemory,
        at: usize,
        bytes: &mut [u8],
        work: &Stream,
    ) -> Result<(), DeviceError> {
        let mut back = self.back.borrow_mut();
        let mut at = at;
        let most = back.bytes().len();
        for piece in bytes.chunks_mut(most) {
            block.read(at, &mut back, piece.len(), work)?;
            work.synchronize()?;
            piece.copy_from_slice(&back.bytes()[..piece.len()]);
            at += piece.len();
        }
        Ok(())
    }
}
