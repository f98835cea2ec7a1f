//! Orders of tasks with a low peak of the live bytes.
//!
//! Tasks and buffers are plain numbers, so that nodes of a graph and operations of a plan are ordered by
//! the same rules. The model is that of [lifetimes](super::lifetimes): a buffer is born when the task
//! that makes it starts and dies when the last task that reads it has finished; while a task runs, its
//! inputs and its outputs are alive, but for an output that is written over an input which dies there.
//!
//! [`order`] compares four orders, in time near-linear in the number of reads; of equal peaks, the one
//! nearest to the given order wins:
//!
//! 1. the order given, with eager tasks moved up to where they become ready;
//! 2. *sunk*: a task that allocates at least as much as it frees waits for its first reader;
//! 3. either of them, *greedy*: a ready task that frees at least as much as it allocates runs at once
//!    (so does a weight gradient whose dY dies with it).
//!
//! [`search`] starts from there and looks further, at the places where the peak is.

mod candidates;
mod search;

pub use search::search;

use thiserror::Error;

/// Something that occupies memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffer {
    /// Its size.
    pub bytes: i64,
    /// Whether it outlives all tasks.
    pub lives_to_end: bool,
    /// Whether it exists from the start, as parameters do: it counts nothing and is never freed.
    pub born_before: bool,
}

/// Something to do. Its number is its place in the order given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Task<'a> {
    /// The buffers whose bytes it reads.
    pub reads: &'a [usize],
    /// The buffers that it makes, each made by no other.
    pub makes: &'a [usize],
    /// The tasks that it must follow, besides the makers of what it reads.
    pub after: &'a [usize],
    /// That `after` leads to the makers of all that it reads, be it through other tasks (as through
    /// that of a view); no edge is added for a read then. What it leaves out is not made up for.
    pub after_is_all: bool,
    /// Whether it runs as soon as it can.
    pub eager: bool,
    /// Whether what it makes is wanted for itself, so that it waits for no reader.
    pub is_result: bool,
    /// Made buffers, each with read ones that it may be written over, the preferred one first; one that
    /// dies with this task and has the same size is taken.
    pub overwrites: &'a [(usize, &'a [usize])],
}

/// Why a task cannot be added.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TaskError {
    /// The order given is none.
    #[error("task {task} follows task {other}, which comes later in the order given")]
    Unordered {
        /// Which one.
        task: usize,
        /// The one that it must follow.
        other: usize,
    },
    /// A number that stands for no buffer.
    #[error("task {task} names buffer {buffer}, but there are {buffers}")]
    NoBuffer {
        /// Which one.
        task: usize,
        /// What it names.
        buffer: usize,
        /// How many there are.
        buffers: usize,
    },
    /// A buffer has no bytes yet.
    #[error("task {task} reads buffer {buffer}, which no earlier task makes")]
    Unmade {
        /// Which one.
        task: usize,
        /// What it reads.
        buffer: usize,
    },
    /// A buffer that exists already is made.
    #[error("task {task} makes buffer {buffer}, which exists already")]
    MadeTwice {
        /// Which one.
        task: usize,
        /// What it makes.
        buffer: usize,
    },
    /// Sizes that cannot be summed up.
    #[error("the buffers have a negative size, or more than 2^63 bytes together")]
    Size,
}

/// Lists by number, one behind the other in one array.
#[derive(Clone, Debug)]
struct Lists<T> {
    ends: Vec<usize>,
    items: Vec<T>,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Lists {
            ends: Vec::new(),
            items: Vec::new(),
        }
    }
}

impl<T: Copy> Lists<T> {
    fn push(&mut self, items: impl IntoIterator<Item = T>) {
        self.items.extend(items);
        self.ends.push(self.items.len());
    }

    fn of(&self, index: usize) -> &[T] {
        let start = match index {
            0 => 0,
            _ => self.ends[index - 1],
        };
        &self.items[start..self.ends[index]]
    }

    fn len(&self) -> usize {
        self.ends.len()
    }
}

impl Lists<usize> {
    /// For each of `count` items, the lists in which it stands, ascending; once for each time.
    fn inverse(&self, count: usize) -> Lists<usize> {
        let mut next = vec![0usize; count + 1];
        for &item in &self.items {
            next[item + 1] += 1;
        }
        for item in 0..count {
            next[item + 1] += next[item];
        }
        let mut items = vec![0; self.items.len()];
        for list in 0..self.len() {
            for &item in self.of(list) {
                items[next[item]] = list;
                next[item] += 1;
            }
        }
        next.truncate(count);
        Lists { ends: next, items }
    }
}

/// A made buffer, and the span of the buffers that it may be written over.
type Overwrite = (usize, (usize, usize));

/// Tasks in a given order, and the buffers between them.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    buffers: Vec<Buffer>,
    /// By buffer: the task that makes it.
    makers: Vec<Option<usize>>,
    /// The sum of all sizes.
    sum: i64,
    /// By task: what it reads and can be counted, each once.
    reads: Lists<usize>,
    makes: Lists<usize>,
    /// By task: what it follows, maybe more than once.
    after: Lists<usize>,
    overwrites: Lists<Overwrite>,
    over: Vec<usize>,
    eager: Vec<bool>,
    is_result: Vec<bool>,
}

impl Tasks {
    /// Adds a buffer and returns its number.
    ///
    /// # Errors
    /// [`TaskError::Size`] where it is negative, or the sum of all too large.
    pub fn buffer(&mut self, buffer: Buffer) -> Result<usize, TaskError> {
        if buffer.bytes < 0 {
            return Err(TaskError::Size);
        }
        self.sum = (self.sum.checked_add(buffer.bytes)).ok_or(TaskError::Size)?;
        self.buffers.push(buffer);
        self.makers.push(None);
        Ok(self.buffers.len() - 1)
    }

    /// Adds a task behind those added before and returns its number.
    ///
    /// # Errors
    /// [`TaskError`] where it needs what no earlier task makes, or names what is not there; the task is
    /// not added then.
    pub fn task(&mut self, task: Task<'_>) -> Result<usize, TaskError> {
        let index = self.len();
        let buffers = self.buffers.len();
        let overwritten = task
            .overwrites
            .iter()
            .flat_map(|(made, over)| std::iter::once(made).chain(over.iter()));
        let mut named = task.reads.iter().chain(task.makes).chain(overwritten);
        if let Some(&buffer) = named.find(|&&b| b >= buffers) {
            return Err(TaskError::NoBuffer {
                task: index,
                buffer,
                buffers,
            });
        }
        if let Some(&other) = task.after.iter().find(|&&other| other >= index) {
            return Err(TaskError::Unordered { task: index, other });
        }
        for &buffer in task.reads {
            if !self.buffers[buffer].born_before && self.makers[buffer].is_none() {
                return Err(TaskError::Unmade {
                    task: index,
                    buffer,
                });
            }
        }
        for (place, &buffer) in task.makes.iter().enumerate() {
            let made = self.buffers[buffer].born_before || self.makers[buffer].is_some();
            if made || task.makes[..place].contains(&buffer) {
                return Err(TaskError::MadeTwice {
                    task: index,
                    buffer,
                });
            }
        }
        let start = self.reads.items.len();
        let counted = task.reads.iter().filter(|&&b| !self.buffers[b].born_before);
        self.reads.items.extend(counted);
        self.reads.items[start..].sort_unstable();
        let mut kept = start;
        for read in start..self.reads.items.len() {
            if read == start || self.reads.items[read] != self.reads.items[kept - 1] {
                self.reads.items[kept] = self.reads.items[read];
                kept += 1;
            }
        }
        self.reads.items.truncate(kept);
        self.reads.ends.push(kept);
        self.makes.push(task.makes.iter().copied());
        let makers = self.reads.of(index).iter().filter_map(|&b| self.makers[b]);
        let makers = makers.filter(|_| !task.after_is_all);
        self.after.push(task.after.iter().copied().chain(makers));
        for &buffer in task.makes {
            self.makers[buffer] = Some(index);
        }
        for &(made, over) in task.overwrites {
            let start = self.over.len();
            self.over.extend_from_slice(over);
            self.overwrites.items.push((made, (start, self.over.len())));
        }
        self.overwrites.ends.push(self.overwrites.items.len());
        self.eager.push(task.eager);
        self.is_result.push(task.is_result);
        Ok(index)
    }

    /// The number of tasks.
    pub fn len(&self) -> usize {
        self.eager.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.eager.is_empty()
    }

    /// The live bytes while each task runs, in an order of all tasks.
    pub fn live(&self, order: &[usize]) -> Vec<i64> {
        let readers = self.reads.inverse(self.buffers.len());
        let mut memory = Memory::new(self, &readers);
        order.iter().map(|&task| memory.run(task)).collect()
    }
}

/// The best order found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Every task once, after what it follows.
    pub order: Vec<usize>,
    /// The highest of the live bytes.
    pub peak: i64,
    /// The same in the order given.
    pub given_peak: i64,
}

/// The best of the four orders.
pub fn order(tasks: &Tasks) -> Order {
    let links = Links::new(tasks);
    let given: Vec<usize> = (0..tasks.len()).collect();
    let mut memory = Memory::new(tasks, &links.readers);
    let given_peak = memory.peak(&given);
    let mut found: Option<Order> = None;
    for order in links.candidates(&given) {
        let peak = memory.peak(&order);
        if found.as_ref().is_none_or(|best| peak < best.peak) {
            found = Some(Order {
                order,
                peak,
                given_peak,
            });
        }
    }
    found.unwrap_or(Order {
        order: given,
        peak: given_peak,
        given_peak,
    })
}

/// Who follows whom and who reads what, for several walks over all tasks.
struct Links<'t> {
    tasks: &'t Tasks,
    /// By task: those that follow it.
    followers: Lists<usize>,
    /// By buffer: the tasks that read it, each once.
    readers: Lists<usize>,
}

impl<'t> Links<'t> {
    fn new(tasks: &'t Tasks) -> Self {
        Links {
            tasks,
            followers: tasks.after.inverse(tasks.len()),
            readers: tasks.reads.inverse(tasks.buffers.len()),
        }
    }
}

/// What is alive while tasks run one after the other.
struct Memory<'t> {
    tasks: &'t Tasks,
    readers: &'t Lists<usize>,
    /// By buffer: the reads still to come; one more for what outlives all tasks.
    left: Vec<u32>,
    live: i64,
    /// The buffers that outputs of the running task are written over.
    taken: Vec<usize>,
}

impl<'t> Memory<'t> {
    fn new(tasks: &'t Tasks, readers: &'t Lists<usize>) -> Self {
        let mut memory = Memory {
            tasks,
            readers,
            left: Vec::new(),
            live: 0,
            taken: Vec::new(),
        };
        memory.reset();
        memory
    }

    /// Back to before the first task.
    fn reset(&mut self) {
        self.live = 0;
        self.left.clear();
        let buffers = self.tasks.buffers.iter().enumerate();
        self.left.extend(buffers.map(|(index, buffer)| {
            self.readers.of(index).len() as u32 + u32::from(buffer.lives_to_end)
        }));
    }

    /// Runs a task and returns the bytes alive meanwhile.
    fn run(&mut self, task: usize) -> i64 {
        let during = self.during(task);
        self.finish(task);
        during
    }

    /// The bytes alive while a task runs.
    fn during(&mut self, task: usize) -> i64 {
        let tasks = self.tasks;
        let bytes = |buffer: usize| tasks.buffers[buffer].bytes;
        let mut during = self.live;
        for &made in tasks.makes.of(task) {
            during += bytes(made);
        }
        self.taken.clear();
        for &(made, (start, end)) in tasks.overwrites.of(task) {
            let over = tasks.over[start..end].iter().copied().find(|&over| {
                bytes(over) == bytes(made)
                    && self.left[over] == 1
                    && !tasks.buffers[over].lives_to_end
                    && !self.taken.contains(&over)
                    && tasks.reads.of(task).binary_search(&over).is_ok()
            });
            if let Some(over) = over {
                self.taken.push(over);
                during -= bytes(over);
            }
        }
        during
    }

    /// Frees what dies with a task.
    fn finish(&mut self, task: usize) {
        for &made in self.tasks.makes.of(task) {
            if self.left[made] > 0 {
                self.live += self.tasks.buffers[made].bytes;
            }
        }
        for &read in self.tasks.reads.of(task) {
            self.left[read] -= 1;
            if self.left[read] == 0 {
                self.live -= self.tasks.buffers[read].bytes;
            }
        }
    }

    fn peak(&mut self, order: &[usize]) -> i64 {
        self.reset();
        order.iter().map(|&task| self.run(task)).fold(0, i64::max)
    }
}
