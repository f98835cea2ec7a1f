//! An allocator that counts on the threads that are watched. A test program has one global allocator, so each
//! program that counts includes this file; `tests/runtime` of the whole workspace does so by its path.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread is one of those that are watched: other tests, and the harness, run beside.
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    // A thread that ends has no mark any more.
    if WATCHED.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, SeqCst);
    }
}

// SAFETY: everything is the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the pointer came from `System` by the functions here.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System` by the functions here.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Watches the threads of the pool that this runs in, from now on.
pub fn watch_pool() {
    rayon::broadcast(|_| WATCHED.set(true));
}

/// How many allocations the watched threads have made. Whoever expects none must show that it counts.
pub fn allocations() -> usize {
    ALLOCATIONS.load(SeqCst)
}

/// Makes each of two threads take work of the other: rayon's queues allocate when a thread does so for
/// the first time, which on a busy machine may be late.
#[allow(dead_code)] // A program whose threads have warmed up otherwise does without.
pub fn both_steal() {
    let (there, back) = (AtomicBool::new(false), AtomicBool::new(false));
    let wait = |flag: &AtomicBool| {
        while !flag.load(SeqCst) {
            std::thread::yield_now();
        }
    };
    rayon::join(
        || wait(&there),
        || {
            there.store(true, SeqCst);
            rayon::join(|| wait(&back), || back.store(true, SeqCst));
        },
    );
}
