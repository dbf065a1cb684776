"""Takes from the present process, for good, what running a statement does not need: the kernel's part of the sandbox.

It holds native code too, should a statement make DuckDB run some. Landlock leaves the parts of the store and the
installed code readable, and nothing writable. A seccomp filter refuses sockets, other programs, new processes, files
opened for writing, and calls that remove, rename or change files. Both need Linux and no privileges; what this kernel
lacks is left out, and `available` says what there is.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_EXECUTE, _READ_FILE, _READ_DIR = 1, 4, 8
_RIGHTS = {1: 2**13 - 1, 2: 2**14 - 1, 3: 2**15 - 1, 4: 2**15 - 1}  # handled rights of files by ABI; later 2**16 - 1
_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers of system calls (asm/unistd_64.h; asm-generic/unistd.h); None where the machine has no such call.
_CALLS = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "kill": (62, 129), "tkill": (200, 130),
    "unlink": (87, None), "unlinkat": (263, 35), "rmdir": (84, None), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    "mkdir": (83, None), "mkdirat": (258, 34), "mknod": (133, None), "mknodat": (259, 33), "creat": (85, None),
    "truncate": (76, 45), "ftruncate": (77, 46), "fallocate": (285, 47), "chmod": (90, None), "fchmod": (91, 52),
    "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "utimensat": (280, 88), "mount": (165, 40), "unshare": (272, 97), "setns": (308, 268),
    "bpf": (321, 280), "perf_event_open": (298, 241), "keyctl": (250, 219), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "memfd_create": (319, 279),
}  # fmt: skip
# glibc falls back to `clone` and `openat`, whose arguments a filter can look at.
_ABSENT = {"clone3": (435, 435), "openat2": (437, 437)}
_CLONE, _OPEN, _OPENAT = (56, 220), (2, None), (257, 56)
_CLONE_THREAD = 0x00010000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NR_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_X32 = 0x40000000  # the second table of calls of x86-64


def available() -> dict[str, bool]:
    """What this kernel lets an unprivileged process take from itself: `landlock` (files) and `seccomp` (calls)."""
    return {"landlock": _landlock_version() > 0, "seccomp": _seccomp_is_there()}


def confine(readable: Iterable[str]) -> dict[str, bool]:
    """Confine this process and its later threads; files and folders `readable` can still be opened for reading.

    Returns what holds from now on, of `available`.
    """
    if sys.platform != "linux":
        return {"landlock": False, "seccomp": False}
    if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return {"landlock": False, "seccomp": False}
    there = available()  # asked before, for it reads a file
    return {
        "landlock": there["landlock"] and _restrict_files(readable),
        "seccomp": there["seccomp"] and _restrict_calls(),
    }


def code_folders() -> list[str]:
    """Where installed code lies, which Python and libraries read late: modules, time zones, shared libraries."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    ours = [str(Path(__file__).parents[1]), str(Path(sys.modules["sql"].__file__ or "").parent)]
    return [*(sysconfig.get_path(kind) for kind in kinds), *ours, "/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo"]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _landlock_version() -> int:
    if sys.platform != "linux":
        return 0
    return max(0, int(_libc().syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))))


def _seccomp_is_there() -> bool:
    with suppress(OSError):
        names = Path("/proc/sys/kernel/seccomp/actions_avail").read_text(encoding="ascii")
        return "errno" in names.split() and platform.machine() in _ARCH and sys.byteorder == "little"
    return False


def _restrict_files(readable: Iterable[str]) -> bool:
    version = _landlock_version()
    if not version:
        return False
    libc = _libc()
    handled = ctypes.create_string_buffer(struct.pack("<Q", _RIGHTS.get(version, 2**16 - 1)), 8)
    ruleset = libc.syscall(_LANDLOCK_CREATE, handled, ctypes.c_size_t(8), ctypes.c_uint32(0))
    if ruleset < 0:
        return False
    try:
        for path in readable:
            with suppress(OSError):  # what is not there needs no rule
                _allow_reading(libc, ruleset, path)
        return bool(libc.syscall(_LANDLOCK_RESTRICT, ruleset, ctypes.c_uint32(0)) == 0)
    finally:
        os.close(ruleset)


def _allow_reading(libc: ctypes.CDLL, ruleset: int, path: str) -> None:
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rights = _READ_FILE | _READ_DIR | _EXECUTE if Path(path).is_dir() else _READ_FILE
        rule = ctypes.create_string_buffer(struct.pack("<Qi", rights, opened), 12)
        if libc.syscall(_LANDLOCK_ADD, ruleset, ctypes.c_int(1), rule, ctypes.c_uint32(0)) != 0:
            raise OSError(ctypes.get_errno(), f"{path} cannot be made readable")
    finally:
        os.close(opened)


def _restrict_calls() -> bool:
    machine = platform.machine()
    code = b"".join(_program(machine))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)), 16)
    return bool(_libc().prctl(_PR_SET_SECCOMP, _FILTER_MODE, program, 0, 0) == 0)


def _program(machine: str) -> list[bytes]:
    """The filter (linux/seccomp.h), one instruction a piece: what is not named is allowed."""
    place = 0 if machine == "x86_64" else 1
    refuse, absent = _step(_RETURN, _ERRNO | errno.EPERM), _step(_RETURN, _ERRNO | errno.ENOSYS)
    found = [_step(_LOAD, _ARCH_AT), _step(_EQUAL, _ARCH[machine], 1, 0), refuse, _step(_LOAD, _NR_AT)]
    if machine == "x86_64":
        found += [_step(_GREATER, _X32, 0, 1), refuse]
    for calls, answer in ((_CALLS, refuse), (_ABSENT, absent)):
        for numbers in calls.values():
            number = numbers[place]
            if number is not None:
                found += [_step(_EQUAL, number, 0, 1), answer]
    for numbers, argument in ((_OPEN, 1), (_OPENAT, 2)):
        number = numbers[place]
        if number is not None:  # refused with any flag of writing
            at = _ARGUMENTS_AT + 8 * argument
            allow = _step(_RETURN, _ALLOW)
            found += [_step(_EQUAL, number, 0, 4), _step(_LOAD, at), _step(_ANY_BIT, _WRITING, 0, 1), refuse, allow]
    number = _CLONE[place]  # a thread is allowed, a process is not
    found += [_step(_EQUAL, number, 0, 3), _step(_LOAD, _ARGUMENTS_AT), _step(_ANY_BIT, _CLONE_THREAD, 1, 0), refuse]
    return [*found, _step(_RETURN, _ALLOW)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
