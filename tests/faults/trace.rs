//! Runs the tool under `ptrace`, where each of its system calls can be watched, made to fail, or made its last.
//!
//! ptrace needs no program that may be missing, and no right but to trace one's own children.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// A system call that is about to happen.
pub struct Call {
    /// Its name, of those in [`CALLS`].
    pub name: &'static str,
    arguments: [u64; 6],
    process: libc::pid_t,
}

/// What is to become of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It happens.
    Happens,
    /// It does not happen, and returns this error.
    Fails(i32),
    /// It does not happen, because the process is killed.
    Kills,
    /// It has to wait until somebody says so: the tracing ends, and the process stands still.
    Stops,
}

/// How a traced process ended.
pub enum End {
    /// By itself, or killed; with what it wrote to standard error.
    Ended(ExitStatus, String),
    /// Not yet: it stands still.
    Stopped(Stopped),
}

const PAGE: usize = 4096;

/// A process that stands still before a system call.
pub struct Stopped {
    tracee: Tracee,
}

/// The calls that have to do with files. Argument `path` and `fd` say where in the arguments they are.
struct Known {
    number: i64,
    name: &'static str,
    path: Option<usize>,
    fd: Option<usize>,
}

const fn known(number: i64, name: &'static str, path: Option<usize>, fd: Option<usize>) -> Known {
    Known {
        number,
        name,
        path,
        fd,
    }
}

static CALLS: [Known; 44] = [
    known(libc::SYS_read, "read", None, Some(0)),
    known(libc::SYS_pread64, "pread64", None, Some(0)),
    known(libc::SYS_readv, "readv", None, Some(0)),
    known(libc::SYS_write, "write", None, Some(0)),
    known(libc::SYS_pwrite64, "pwrite64", None, Some(0)),
    known(libc::SYS_writev, "writev", None, Some(0)),
    known(libc::SYS_open, "open", Some(0), None),
    known(libc::SYS_openat, "openat", Some(1), None),
    known(libc::SYS_creat, "creat", Some(0), None),
    known(libc::SYS_close, "close", None, Some(0)),
    known(libc::SYS_stat, "stat", Some(0), None),
    known(libc::SYS_lstat, "lstat", Some(0), None),
    known(libc::SYS_fstat, "fstat", None, Some(0)),
    known(libc::SYS_newfstatat, "newfstatat", Some(1), None),
    known(libc::SYS_statx, "statx", Some(1), None),
    known(libc::SYS_access, "access", Some(0), None),
    known(libc::SYS_faccessat, "faccessat", Some(1), None),
    known(libc::SYS_lseek, "lseek", None, Some(0)),
    known(libc::SYS_mmap, "mmap", None, Some(4)),
    known(libc::SYS_ftruncate, "ftruncate", None, Some(0)),
    known(libc::SYS_truncate, "truncate", Some(0), None),
    known(libc::SYS_fallocate, "fallocate", None, Some(0)),
    known(libc::SYS_fsync, "fsync", None, Some(0)),
    known(libc::SYS_fdatasync, "fdatasync", None, Some(0)),
    known(libc::SYS_rename, "rename", Some(1), None),
    known(libc::SYS_renameat, "renameat", Some(3), None),
    known(libc::SYS_renameat2, "renameat2", Some(3), None),
    known(libc::SYS_unlink, "unlink", Some(0), None),
    known(libc::SYS_unlinkat, "unlinkat", Some(1), None),
    known(libc::SYS_link, "link", Some(1), None),
    known(libc::SYS_linkat, "linkat", Some(3), None),
    known(libc::SYS_symlink, "symlink", Some(1), None),
    known(libc::SYS_mkdir, "mkdir", Some(0), None),
    known(libc::SYS_mkdirat, "mkdirat", Some(1), None),
    known(libc::SYS_rmdir, "rmdir", Some(0), None),
    known(libc::SYS_copy_file_range, "copy_file_range", None, Some(2)),
    known(libc::SYS_sendfile, "sendfile", None, Some(0)),
    known(libc::SYS_splice, "splice", None, Some(2)),
    known(libc::SYS_flock, "flock", None, Some(0)),
    known(libc::SYS_fchmod, "fchmod", None, Some(0)),
    known(libc::SYS_chmod, "chmod", Some(0), None),
    known(libc::SYS_getdents64, "getdents64", None, Some(0)),
    known(libc::SYS_readlink, "readlink", Some(0), None),
    known(libc::SYS_fcntl, "fcntl", None, Some(0)),
];

impl Call {
    fn known(&self) -> &'static Known {
        let mut calls = CALLS.iter();
        calls.find(|known| known.name == self.name).unwrap()
    }

    /// The path that it names.
    pub fn path(&self) -> Option<PathBuf> {
        let mut address = self.arguments[self.known().path?];
        let memory = File::open(format!("/proc/{}/mem", self.process)).unwrap();
        let mut text = Vec::new();
        loop {
            // What follows this page may not be mapped.
            let mut part = vec![0; PAGE - address as usize % PAGE];
            memory.read_exact_at(&mut part, address).ok()?;
            address += part.len() as u64;
            let end = part.iter().position(|byte| *byte == 0);
            text.extend_from_slice(&part[..end.unwrap_or(part.len())]);
            if end.is_some() {
                return Some(String::from_utf8(text).unwrap().into());
            }
        }
    }

    /// The file or folder that it names, or that its descriptor stands for; relative paths are those of
    /// `folder`.
    pub fn target(&self, folder: &Path) -> Option<PathBuf> {
        match self.descriptor() {
            Some(descriptor) => {
                fs::read_link(format!("/proc/{}/fd/{descriptor}", self.process)).ok()
            }
            None => Some(folder.join(self.path()?)),
        }
    }

    /// The descriptor that it works on.
    pub fn descriptor(&self) -> Option<i32> {
        self.known().fd.map(|at| self.arguments[at] as i32)
    }

    /// One of its arguments as a number.
    pub fn argument(&self, at: usize) -> u64 {
        self.arguments[at]
    }
}

/// A traced process and its threads.
struct Tracee {
    process: libc::pid_t,
    /// Threads that are within a call, with the error that it is to return.
    within: HashMap<libc::pid_t, Option<i32>>,
    errors: tempfile::NamedTempFile,
}

/// Runs a command; `fate` decides on each of its calls that have to do with files.
pub fn trace(command: &mut Command, fate: impl FnMut(&Call) -> Fate) -> End {
    let errors = tempfile::NamedTempFile::new().unwrap();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors.reopen().unwrap())
        // To wait for this process and its threads, and not for those of other tests.
        .process_group(0);
    // SAFETY: ptrace may be called between fork and exec, and touches no memory here.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    // Waited for below, with its threads.
    #[allow(clippy::zombie_processes)]
    let child = command.spawn().unwrap();
    let process = libc::pid_t::try_from(child.id()).unwrap();
    let (stopped, status) = wait(process);
    assert!(
        stopped == process && libc::WIFSTOPPED(status),
        "the tool does not start: {status:#x}"
    );
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SETOPTIONS, process, options as usize);
    request(libc::PTRACE_SYSCALL, process, 0);
    let tracee = Tracee {
        process,
        within: HashMap::new(),
        errors,
    };
    tracee.go_on(fate)
}

impl Stopped {
    /// Lets it go on.
    pub fn go_on(self, fate: impl FnMut(&Call) -> Fate) -> End {
        request(libc::PTRACE_SYSCALL, self.tracee.process, 0);
        self.tracee.go_on(fate)
    }
}

impl Tracee {
    fn go_on(mut self, mut fate: impl FnMut(&Call) -> Fate) -> End {
        const CALL_STOP: i32 = libc::SIGTRAP | 0x80;
        loop {
            let (thread, status) = wait(-self.process);
            if !libc::WIFSTOPPED(status) {
                if thread == self.process {
                    let errors = fs::read_to_string(self.errors.path()).unwrap();
                    return End::Ended(ExitStatus::from_raw(status), errors);
                }
                continue;
            }
            let signal = match libc::WSTOPSIG(status) {
                CALL_STOP => {
                    match self.at_call(thread, &mut fate) {
                        Fate::Kills => {
                            // SAFETY: a process of ours, which was not waited for yet.
                            unsafe { libc::kill(self.process, libc::SIGKILL) };
                            continue;
                        }
                        Fate::Stops => return End::Stopped(Stopped { tracee: self }),
                        Fate::Happens | Fate::Fails(_) => 0,
                    }
                }
                // Of ptrace itself: a thread that was made, and that begins.
                libc::SIGTRAP | libc::SIGSTOP => 0,
                signal => signal,
            };
            request(libc::PTRACE_SYSCALL, thread, signal as usize);
        }
    }

    /// At the begin or the end of a call.
    fn at_call(&mut self, thread: libc::pid_t, fate: &mut impl FnMut(&Call) -> Fate) -> Fate {
        let mut registers = registers(thread);
        if let Some(error) = self.within.remove(&thread) {
            if let Some(error) = error {
                registers.rax = -i64::from(error) as u64;
                set_registers(thread, &registers);
            }
            return Fate::Happens;
        }
        let mut calls = CALLS.iter();
        let decided = match calls.find(|known| known.number as u64 == registers.orig_rax) {
            None => Fate::Happens,
            Some(known) => fate(&Call {
                name: known.name,
                arguments: [
                    registers.rdi,
                    registers.rsi,
                    registers.rdx,
                    registers.r10,
                    registers.r8,
                    registers.r9,
                ],
                process: self.process,
            }),
        };
        let error = match decided {
            Fate::Fails(error) => {
                // No call has this number, so that none happens.
                registers.orig_rax = u64::MAX;
                set_registers(thread, &registers);
                Some(error)
            }
            _ => None,
        };
        self.within.insert(thread, error);
        decided
    }
}

fn wait(whom: libc::pid_t) -> (libc::pid_t, i32) {
    let mut status = 0;
    // SAFETY: the status is written to a variable of that type.
    let thread = unsafe { libc::waitpid(whom, &mut status, libc::__WALL) };
    assert!(thread > 0, "waitpid: {}", std::io::Error::last_os_error());
    (thread, status)
}

fn request(request: libc::c_uint, thread: libc::pid_t, data: usize) {
    // SAFETY: none of the requests made here touches this process's memory. One that fails is for a thread
    // that was killed meanwhile, whose end is told by the next wait.
    unsafe { libc::ptrace(request, thread, 0, data) };
}

fn registers(thread: libc::pid_t) -> libc::user_regs_struct {
    // SAFETY: all zeros are a value of this plain struct, which the request fills.
    unsafe {
        let mut registers: libc::user_regs_struct = std::mem::zeroed();
        libc::ptrace(libc::PTRACE_GETREGS, thread, 0, &mut registers);
        registers
    }
}

fn set_registers(thread: libc::pid_t, registers: &libc::user_regs_struct) {
    // SAFETY: the request reads a whole struct of that type.
    unsafe { libc::ptrace(libc::PTRACE_SETREGS, thread, 0, registers) };
}
