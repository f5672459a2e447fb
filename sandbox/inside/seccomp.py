"""The system call policy and its translation into BPF bytes: two filters, each a balanced tree over call numbers.

The cell's filter is installed once by the zygote, which every run inherits: the whole list of what is allowed, and the
few calls more that zygote and boot need. The run's filter comes on top when the boot is over: it takes those few away
and repeats what matters most, so that each of the two alone stops a program from reaching out. Installing a filter
costs by its length in every run, so the long one is installed once; a run only patches its own process id into the
finished bytes of the short one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from sandbox.inside.syscalls import AUDIT_ARCH, X86_64, numbers_of

RET_KILL_PROCESS: Final = 0x80000000
RET_ERRNO: Final = 0x00050000
RET_ALLOW: Final = 0x7FFF0000
EPERM, EACCES, ENOTTY, ENOSYS = 1, 13, 25, 38

LD_W_ABS: Final = 0x20
JMP_JA: Final = 0x05
JMP_JEQ_K: Final = 0x15
JMP_JGE_K: Final = 0x35
JMP_JSET_K: Final = 0x45
RET_K: Final = 0x06

OFFSET_NR, OFFSET_ARCH, OFFSET_ARGS = 0, 4, 16
X32_BIT: Final = 0x40000000
# A constant that no genuine argument check uses; every occurrence is replaced by the run's own pid.
PID_PLACEHOLDER: Final = 0x7E57_71D5

CLONE_THREAD: Final = 0x00010000
PR_SET_NAME, PR_GET_NAME = 15, 16
AF_UNIX: Final = 1
AT_EMPTY_PATH: Final = 0x1000
IOCTLS_ALLOWED: Final = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIO*
FCNTLS_ALLOWED: Final = (0, 1, 2, 3, 4, 1030, 1034)  # DUPFD, GETFD, SETFD, GETFL, SETFL, DUPFD_CLOEXEC, GET_SEALS


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ALLOW: Final = _names(
    """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range fstat dup dup2
    dup3 pipe pipe2 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
    epoll_pwait2 eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime sendfile
    copy_file_range fsync fdatasync ftruncate getdents getdents64 getcwd umask uname sysinfo getpid getppid gettid
    getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid getrlimit setrlimit getrusage
    times sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max
    sched_get_priority_min getpriority exit exit_group restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn
    rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack set_tid_address set_robust_list get_robust_list futex
    futex_waitv rseq membarrier mmap munmap mprotect mremap madvise brk msync mincore clock_gettime clock_getres
    clock_nanosleep nanosleep gettimeofday time getitimer setitimer alarm pause timer_create timer_settime
    timer_gettime timer_getoverrun timer_delete getrandom wait4 waitid recvfrom shutdown getsockname getpeername
    getsockopt getcpu fadvise64 readahead
    """
)
# Look-ups in the file system: allowed where a mount namespace or Landlock rules over the paths, else refused.
# Landlock has no say over stat, so at level `landlock` a program can learn that a path exists, and no more.
FILES: Final = _names(
    """
    open openat stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat chdir fchdir statfs
    fstatfs
    """
)
# Honest programs probe these and expect an error: EPERM lets them go on.
REFUSE: Final = _names(
    """
    socket connect bind listen accept accept4 setsockopt sendmsg recvmsg sendmmsg recvmmsg execve execveat fork vfork
    memfd_create memfd_secret tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal setpgid setsid
    setpriority sched_setaffinity sched_setscheduler sched_setparam sched_setattr ioprio_set mlock mlockall mlock2
    munlock shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl mq_open mq_unlink
    inotify_init inotify_init1 inotify_add_watch fanotify_init flock mkdir mkdirat rmdir unlink unlinkat rename
    renameat renameat2 link linkat symlink symlinkat mknod mknodat creat truncate chmod fchmod fchmodat fchmodat2
    chown fchown lchown fchownat utime utimes utimensat futimesat setxattr lsetxattr fsetxattr removexattr
    lremovexattr fremovexattr fallocate seccomp splice tee vmsplice sync syncfs acct quotactl
    landlock_create_ruleset landlock_add_rule landlock_restrict_self process_madvise name_to_handle_at syslog
    personality openat2
    """
)
# No honest solution makes these calls: the process dies and the verdict is security_violation.
KILL: Final = _names(
    """
    ptrace process_vm_readv process_vm_writev mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick
    open_tree move_mount mount_setattr unshare setns bpf io_uring_setup io_uring_enter io_uring_register userfaultfd
    perf_event_open keyctl add_key request_key kcmp pidfd_getfd init_module finit_module delete_module kexec_load
    kexec_file_load reboot swapon swapoff setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid
    setfsgid capset open_by_handle_at settimeofday clock_settime adjtimex clock_adjtime iopl ioperm modify_ldt
    sethostname setdomainname nfsservctl
    """
)


# What zygote and boot do and no program may: taken away by the run's filter.
BOOT: Final = _names(
    """
    recvmsg sendmsg clone pidfd_open kill tgkill prctl setresuid landlock_restrict_self
    prlimit64
    """
)
# In the run's filter as well as in the cell's: what takes no privilege, and what could undo another layer. The rest of
# KILL and REFUSE needs capabilities that no run has, or is stopped by Landlock or a namespace.
TWICE: Final = _names(
    """
    ptrace process_vm_readv process_vm_writev unshare setns bpf io_uring_setup userfaultfd perf_event_open keyctl
    add_key request_key kcmp pidfd_getfd fork vfork execve execveat socket flock
    """
)


class Insn(NamedTuple):
    """One classic BPF instruction."""

    code: int
    jt: int
    jf: int
    k: int


def _ret(value: int) -> list[Insn]:
    return [Insn(RET_K, 0, 0, value)]


def _load_arg(index: int, high: bool = False) -> Insn:
    """Load one 32-bit half of a call argument (both machines are little-endian)."""
    return Insn(LD_W_ABS, 0, 0, OFFSET_ARGS + 8 * index + (4 if high else 0))


def _arg_in(index: int, values: tuple[int, ...], otherwise: int) -> list[Insn]:
    """Allow the call when the low half of the argument is one of `values`."""
    code = [_load_arg(index)]
    for position, value in enumerate(values):
        code.append(Insn(JMP_JEQ_K, len(values) - position, 0, value))
    return code + _ret(otherwise) + _ret(RET_ALLOW)


def _clone() -> list[Insn]:
    code = [_load_arg(0), Insn(JMP_JSET_K, 1, 0, CLONE_THREAD)]
    return code + _ret(RET_ERRNO | EPERM) + _ret(RET_ALLOW)


def _sendto() -> list[Insn]:
    """Only without an address: a datagram socket pair must not reach a named socket of the host."""
    refuse = RET_ERRNO | EPERM
    code = [_load_arg(4), Insn(JMP_JEQ_K, 0, 2, 0), _load_arg(4, high=True), Insn(JMP_JEQ_K, 1, 0, 0)]
    return code + _ret(refuse) + _ret(RET_ALLOW)


# What depends on the arguments. clone3 is ENOSYS: its flags lie in memory where no filter sees them, and libc falls
# back to clone.
SPECIAL: Final[dict[str, Callable[[], list[Insn]]]] = {
    "clone": _clone,
    "clone3": lambda: _ret(RET_ERRNO | ENOSYS),
    "kill": lambda: _arg_in(0, (PID_PLACEHOLDER,), RET_ERRNO | EPERM),
    "tgkill": lambda: _arg_in(0, (PID_PLACEHOLDER,), RET_ERRNO | EPERM),
    "prctl": lambda: _arg_in(0, (PR_SET_NAME, PR_GET_NAME), RET_ERRNO | EPERM),
    "socketpair": lambda: _arg_in(0, (AF_UNIX,), RET_ERRNO | EPERM),
    "sendto": _sendto,
    "ioctl": lambda: _arg_in(1, IOCTLS_ALLOWED, RET_ERRNO | ENOTTY),
    "fcntl": lambda: _arg_in(1, FCNTLS_ALLOWED, RET_ERRNO | EPERM),
    "prlimit64": lambda: _arg_in(0, (0, PID_PLACEHOLDER), RET_ERRNO | EPERM),
}

SPECIAL_TWICE: Final = frozenset({"clone3", "fcntl"})


def _cell_rule(name: str, allow_files: bool) -> list[Insn]:
    """What the cell's filter does with a call. Raises ValueError for one that the policy does not name."""
    if name in BOOT:
        return _ret(RET_ALLOW)
    if name in SPECIAL:
        return SPECIAL[name]()
    if name in ALLOW or (allow_files and name in FILES):
        return _ret(RET_ALLOW)
    if name == "newfstatat":
        return _arg_in(3, (AT_EMPTY_PATH,), RET_ERRNO | EACCES)  # how libc spells fstat
    if name in FILES:
        return _ret(RET_ERRNO | EACCES)
    if name in REFUSE:
        return _ret(RET_ERRNO | EPERM)
    if name in KILL:
        return _ret(RET_KILL_PROCESS)
    raise ValueError(f"the policy says nothing about {name}")


def _run_rule(name: str) -> list[Insn] | None:
    """What the run's filter does with a call; None where it leaves it to the cell's."""
    if name not in BOOT and name not in TWICE and name not in SPECIAL_TWICE:
        return None
    if name in SPECIAL:
        return SPECIAL[name]()
    return _ret(RET_KILL_PROCESS if name in KILL else RET_ERRNO | EPERM)


def _leaves(rules: dict[int, list[Insn]], default: list[Insn]) -> list[tuple[int, list[Insn]]]:
    """(first number, code) of every range of calls, in order, covering all numbers from 0."""
    leaves: list[tuple[int, list[Insn]]] = []
    for number in range(max(rules) + 2):
        code = rules.get(number, default)
        if not leaves or leaves[-1][1] != code:
            leaves.append((number, code))
    return leaves


def _tree(leaves: list[tuple[int, list[Insn]]]) -> list[Insn]:
    if len(leaves) == 1:
        return leaves[0][1]
    middle = len(leaves) // 2
    left, right = _tree(leaves[:middle]), _tree(leaves[middle:])
    pivot = leaves[middle][0]
    if len(left) <= 255:
        return [Insn(JMP_JGE_K, len(left), 0, pivot), *left, *right]
    # Conditional jumps reach 255 instructions; an unconditional one reaches all.
    return [Insn(JMP_JGE_K, 0, 1, pivot), Insn(JMP_JA, 0, 0, len(left)), *left, *right]


def build_cell(machine: str, allow_files: bool) -> bytes:
    """The zygote's filter as an array of `struct sock_filter`. Raises KeyError for a machine without a table."""
    rules = {number: _cell_rule(name, allow_files) for name, number in numbers_of(machine).items()}
    return _program(machine, _leaves(rules, _ret(RET_ERRNO | ENOSYS)))


def build_run(machine: str) -> bytes:
    """A run's filter, with `PID_PLACEHOLDER` still in it. Raises KeyError for a machine without a table."""
    rules = {number: code for name, number in numbers_of(machine).items() if (code := _run_rule(name)) is not None}
    return _program(machine, _leaves(rules, _ret(RET_ALLOW)))


def _program(machine: str, leaves: list[tuple[int, list[Insn]]]) -> bytes:
    """Look at the machine first: calls of other modes have other numbers."""
    program = [Insn(LD_W_ABS, 0, 0, OFFSET_ARCH), Insn(JMP_JEQ_K, 1, 0, AUDIT_ARCH[machine])]
    program += _ret(RET_KILL_PROCESS)
    program += [Insn(LD_W_ABS, 0, 0, OFFSET_NR)]
    if machine == X86_64:
        program += [Insn(JMP_JGE_K, 0, 1, X32_BIT), *_ret(RET_KILL_PROCESS)]
    program += _tree(leaves)
    return b"".join(struct.pack("<HBBI", *insn) for insn in program)


def pid_offsets(filter_bytes: bytes) -> tuple[int, ...]:
    """Byte offsets of the constants that a run replaces with its own process id."""
    needle = struct.pack("<I", PID_PLACEHOLDER)
    return tuple(
        offset + 4 for offset in range(0, len(filter_bytes), 8) if filter_bytes[offset + 4 : offset + 8] == needle
    )
