"""The system calls that a solution may make, as a seccomp filter (classic BPF).

Every other call fails with EPERM: processes and threads (clone, fork, execve), sockets, pipes,
shared memory, signals, tracing, mounts, namespaces, users, ioctl, prctl and whatever Linux adds.
"""

import platform
import struct

# name, number on x86_64, number on aarch64 (which lacks those that the *at calls replace)
CALLS = """
read 0 63, write 1 64, pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, lseek 8 62
close 3 57, close_range 436 436, dup 32 23, dup2 33 -, dup3 292 24, fcntl 72 25
open 2 -, openat 257 56, stat 4 -, lstat 6 -, fstat 5 80, newfstatat 262 79, statx 332 291
access 21 -, faccessat 269 48, faccessat2 439 439, readlink 89 -, readlinkat 267 78
getdents64 217 61, getcwd 79 17, chdir 80 49, umask 95 166, ftruncate 77 46, fsync 74 82
mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35
rename 82 -, renameat 264 38, renameat2 316 276
poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72
mmap 9 222, munmap 11 215, mremap 25 216, mprotect 10 226, madvise 28 233, brk 12 214
futex 202 98, set_robust_list 273 99, rseq 334 293, restart_syscall 219 128
sched_yield 24 124, sched_getaffinity 204 123
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, sigaltstack 131 132
clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153
clock_nanosleep 230 115, nanosleep 35 101
getpid 39 172, getppid 110 173, gettid 186 178
getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177
uname 63 160, sysinfo 99 179, getrusage 98 165, prlimit64 302 261, getrandom 318 278
exit 60 93, exit_group 231 94
"""
MACHINES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # column, AUDIT_ARCH

LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL_WITH_EPERM, KILL_PROCESS = 0x7FFF0000, 0x00050001, 0x80000000
NUMBER_OFFSET, ARCH_OFFSET = 0, 4  # of struct seccomp_data


def allowed(machine: str) -> dict[str, int]:
    """The allowed calls' numbers by name.

    Raises:
      ValueError: a machine other than x86_64 and aarch64.
    """
    if machine not in MACHINES:
        raise ValueError(f"machine {machine!r}: the sandbox's filter knows {', '.join(MACHINES)}")
    column = MACHINES[machine][0]
    rows = [row.split() for row in CALLS.strip().replace("\n", ", ").split(", ")]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def make_filter(machine: str | None = None) -> bytes:
    """The filter, an array of struct sock_filter, for a machine, else for this one.

    A call by another architecture's table (32-bit) kills the process; x32 calls have numbers of
    their own, which are not allowed.
    """
    machine = machine or platform.machine()
    numbers = allowed(machine).values()

    def instruction(code, k, if_true=0, if_false=0):
        return struct.pack("=HBBI", code, if_true, if_false, k)

    return b"".join(
        [
            instruction(LOAD, ARCH_OFFSET),
            instruction(JUMP_EQUAL, MACHINES[machine][1], if_true=1),
            instruction(RETURN, KILL_PROCESS),
            instruction(LOAD, NUMBER_OFFSET),
            *(
                instruction(JUMP_EQUAL, number, if_true=len(numbers) - index)
                for index, number in enumerate(numbers)
            ),
            instruction(RETURN, FAIL_WITH_EPERM),
            instruction(RETURN, ALLOW),
        ]
    )
