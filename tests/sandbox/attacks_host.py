"""Attacks 31-74: programs that reach for files, the network, other processes and the kernel."""

# ruff: noqa: E501 - hostile programs are easier to read on one line

from __future__ import annotations

import os
from typing import Any, Final

from attacks import AC, RE, SV, TLE, Attack

from sandbox import Limits, Verdict

X86 = os.uname().machine == "x86_64"
_FOLDER = "FOLDER = HOST['folder']\nCANARY = FOLDER + '/canary'\n"
_BRIEF = Limits(cpu_s=0.3, wall_s=0.4, memory_mb=256)


def _each(
    number: int, codes: dict[str, str], verdicts: frozenset[Verdict] = RE, prefix: str = "", **fields: Any
) -> list[Attack]:
    """Attacks that end in an exception where they fail, and print what is expected where they do not."""
    return [Attack(number, name, prefix + code, verdicts, outside=True, **fields) for name, code in codes.items()]


SECRETS = [
    *_each(31, {
        "environment": "for k, v in os.environ.items():\n  if 'SANDBOX_SECRET' in k: print(v)",
        "environment in memory": "e = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, 'environ')\nn = 0\nwhile e[n]:\n  if b'SANDBOX_SECRET' in e[n]: print(e[n])\n  n += 1",
    }, AC, naked=True),
    *_each(32, {
        "environment of the first process": "print(open('/proc/1/environ').read())",
        "environment of the parent": "print(open(f'/proc/{os.getppid()}/environ').read())",
        "command line of the first process": "print(open('/proc/1/cmdline').read())",
        "own process folder": "print(os.listdir('/proc/self'))",
        "status of the parent": "print(open(f'/proc/{os.getppid()}/status').read())",
    }),
    *_each(32, {
        "environment of a bystander": "print(open(f\"/proc/{HOST['bystander']}/environ\").read())",
        "environment of everybody": "for pid in os.listdir('/proc'):\n  if pid.isdigit():\n    try: text = open(f'/proc/{pid}/environ').read()\n    except OSError: continue\n    if 'SANDBOX_SECRET' in text: print([t for t in text.split('\\0') if 'SANDBOX_SECRET' in t])",
    }, naked=True),
    *_each(33, {
        "descriptors of the parent": "print(os.listdir(f'/proc/{os.getppid()}/fd'))",
        "memory of the parent": "open(f'/proc/{os.getppid()}/mem', 'rb')\nharm('opened')",
        "memory map of the parent": "print(open(f'/proc/{os.getppid()}/maps').read())",
        "descriptors of a task": "print(os.listdir('/proc/self/task'), os.listdir('/proc/thread-self/fd'))",
    }),
    *_each(33, {
        "memory of a bystander": "open(f\"/proc/{HOST['bystander']}/mem\", 'rb')\nharm('opened')",
        "root of a bystander": "print(open(f\"/proc/{HOST['bystander']}/root{HOST['folder']}/secret\").read())",
    }, naked=True),
    *_each(34, {
        "private key": "print(open(HOST['home'] + '/.ssh/id_ed25519').read())",
        "netrc": "print(open(HOST['home'] + '/.netrc').read())",
        "token of a hub": "print(open(HOST['home'] + '/.cache/huggingface/token').read())",
        "secret for all": "print(open(HOST['folder'] + '/secret').read())",
        "secret by a relative path": "os.chdir(HOST['folder'])\nprint(open('secret').read())",
        "secret by dots": "print(open(os.path.dirname(os.__file__) + '/../' * 12 + HOST['folder'] + '/secret').read())",
        "secret by a descriptor of the root": "fd = os.open('/', os.O_RDONLY)\nprint(os.read(os.open(HOST['folder'][1:] + '/secret', os.O_RDONLY, dir_fd=fd), 99))",
        "listing of a folder": "for name in os.listdir(HOST['folder']): harm(name)",
    }, naked=True),
    *_each(34, {
        "secrets of this machine": "opened = 0\nfor p in ('/var/run/secrets/kubernetes.io/serviceaccount/token', '~/.ssh/id_rsa', '~/.netrc', '~/.config/wandb/settings', '/root/.bash_history', '/etc/shadow', '/etc/hostname', '/etc/machine-id', '/proc/cmdline', '/sys/kernel/notes'):\n  try: open(os.path.expanduser(p)).read()\n  except OSError: continue\n  harm(p)\nopen('/etc/shadow')",
    }, naked=True),
    *_each(35, {
        "passwd": "open('/etc/passwd').read()\nharm('read')",
        "home of root": "for name in os.listdir('/root'):\n  if not os.__file__.startswith('/root/' + name): harm(name)\nopen('/root/.profile')",
        "project": "open(HOST['project']).read()\nharm('read')",
        "devices": "os.listdir('/dev')\nos.open('/dev/mem', os.O_RDONLY)\nharm('opened')",
    }),
]  # fmt: skip

_WRITES = {
    "write": "open(CANARY, 'w').write('x')",
    "append": "open(CANARY, 'a').write('x')",
    "overwrite in place": "os.write(os.open(CANARY, os.O_RDWR), b'x')",
    "truncate": "os.truncate(CANARY, 0)",
    "map": "import mmap\nmmap.mmap(os.open(CANARY, os.O_RDWR), 0)[0:1] = b'x'",
    "by a path of the parent": "open(f'/proc/{os.getppid()}/root{CANARY}', 'w').write('x')",
}
_CREATES = {
    "in tmp": "open('/tmp/sandbox-harm', 'x')",
    "in shared memory": "open('/dev/shm/sandbox-harm', 'x')",
    "in var tmp": "open('/var/tmp/sandbox-harm', 'x')",
    "in the home": "open(HOST['home'] + '/sandbox-harm', 'x')",
    "beside": "open(CANARY + '.new', 'x')",
    "temporary": "import tempfile\nopen(tempfile.gettempdir() + '/sandbox-harm', 'x')",
    "creat": "checked(libc.creat(CANARY.encode() + b'.new', 0o666))",
    "shm_open": "checked(libc.shm_open(b'/sandbox-harm', os.O_CREAT | os.O_RDWR, 0o666))",
    "openat2": "how = (ctypes.c_ulonglong * 3)(os.O_CREAT | os.O_WRONLY, 0o666, 0)\ncall('openat2', -100, CANARY.encode() + b'.new', how, 24)",
}
_NODES = {
    "unlink": "os.unlink(CANARY)",
    "rename": "os.rename(CANARY, CANARY + '.moved')",
    "rename over": "os.rename(FOLDER + '/secret', CANARY)",
    "exchange": "call('renameat2', -100, CANARY.encode(), -100, (FOLDER + '/secret').encode(), 2)",
    "symlink": "os.symlink(CANARY, CANARY + '.link')",
    "hard link": "os.link(CANARY, CANARY + '.link')",
    "mkdir": "os.mkdir(CANARY + '.dir')",
    "rmdir": "os.rmdir(FOLDER + '/empty')",
    "mkfifo": "os.mkfifo(CANARY + '.fifo')",
    "mknod": "os.mknod(CANARY + '.node')",
    "chmod": "os.chmod(CANARY, 0o600)",
    "set-user-id": "os.chmod(CANARY, 0o4777)",
    "chown": "os.chown(CANARY, 1234, 1234)",
    "utime": "os.utime(CANARY, (0, 0))",
    "extended attribute": "os.setxattr(CANARY, 'user.x', b'1')",
    "chmod by a descriptor": "os.fchmod(os.open(FOLDER, os.O_RDONLY), 0o700)",
}
# At another device number than any real one, so that success is the only harm.
_DEVICES = {"device node": "import stat\nos.mknod(CANARY + '.device', 0o666 | stat.S_IFCHR, os.makedev(1, 3))"}
_LIBRARY = {
    "append to a module": "open(os.__file__, 'a')\nharm('opened')",
    "overwrite a module": "os.open(os.__file__, os.O_RDWR)\nharm('opened')",
    "touch a module": "os.utime(os.__file__, (0, 0))",
    "unlink a module": "os.unlink(os.__file__)",
    "chmod a module": "os.chmod(os.__file__, 0o666)",
    "new compiled module": "open(os.path.dirname(os.__file__) + '/__pycache__/sandbox_harm.pyc', 'x')",
    "new module": "open(os.path.dirname(os.__file__) + '/sandbox_harm.py', 'x')",
    "move the library": "os.rename(os.path.dirname(os.__file__), '/tmp/sandbox-harm')",
}
# A refused lock and one that fails for another reason differ: only the first is the sandbox's doing.
_LOCKS = {
    "flock": "import fcntl\nf = os.open(os.__file__, os.O_RDONLY)\nunless_refused(lambda: fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB))",
    "record lock": "import fcntl\nf = os.open(os.__file__, os.O_RDONLY)\nunless_refused(lambda: fcntl.lockf(f, fcntl.LOCK_SH | fcntl.LOCK_NB))",
}
FILES = [
    *_each(36, _WRITES, prefix=_FOLDER, naked=True),
    *_each(37, _CREATES, prefix=_FOLDER, naked=True),
    *_each(37, {"in the working directory": "open('sandbox-harm', 'x')", "at the root": "open('/sandbox-harm', 'x')"}, naked=True),
    *_each(38, _LIBRARY),
    *_each(39, _NODES, prefix=_FOLDER, naked=True),
    *_each(39, _DEVICES, prefix=_FOLDER),
    *_each(40, {
        "sparse file": "f = open(CANARY, 'r+')\nf.truncate(1 << 40)",
        "fallocate on the disk": "os.posix_fallocate(os.open(CANARY, os.O_RDWR), 0, 1 << 20)",
    }, prefix=_FOLDER, naked=True),
    *_each(40, {"fallocate of the output": "os.posix_fallocate(1, 0, 1 << 30)\nharm('1 GiB')"}),
    *_each(41, _LOCKS),
    *_each(41, {"lease": "import fcntl\nfcntl.fcntl(os.open(os.__file__, os.O_RDONLY), 1024, fcntl.F_RDLCK)\nharm('leased')"}),
]  # fmt: skip

_CONNECTS = {
    "TCP": "socket.create_connection(('127.0.0.1', HOST['tcp']), timeout=1).send(b'x')",
    "TCP over IPv6": "socket.create_connection(('::ffff:127.0.0.1', HOST['tcp']), timeout=1).send(b'x')",
    "TCP by fast open": "socket.socket().sendto(b'x', 0x20000000, ('127.0.0.1', HOST['tcp']))",
}
_DATAGRAMS = {
    "UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', HOST['udp']))",
    "connected UDP": "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.connect(('127.0.0.1', HOST['udp']))\ns.send(b'x')",
    "UDP broadcast": "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\ns.sendto(b'x', ('127.255.255.255', HOST['udp_any']))",
}
_UNIX = {
    "stream": "s = socket.socket(socket.AF_UNIX)\ns.connect({stream})\ns.send(b'x')",
    "datagram": "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', {datagram})",
    "datagram of a pair": "a, b = socket.socketpair(type=socket.SOCK_DGRAM)\na.sendto(b'x', {datagram})",
    "message of a pair": "a, b = socket.socketpair(type=socket.SOCK_DGRAM)\na.sendmsg([b'x'], [], 0, {datagram})",
    "pair connected anew": "a, b = socket.socketpair(type=socket.SOCK_DGRAM)\na.connect({datagram})\na.send(b'x')",
    "descriptors": "s = socket.socket(socket.AF_UNIX)\ns.connect({stream})\nsocket.send_fds(s, [b'x'], [0])",
}
_FAMILIES = {
    "packet": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\nharm('opened')",
    "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)\nharm('opened')",
    "interfaces": "for number, name in socket.if_nameindex():\n  if name != 'lo': harm(name)",
    "netlink": "s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\ns.bind((0, 0))\ns.settimeout(.1)\ns.send(bytes([20, 0, 0, 0, 18, 0, 1, 3]) + bytes(12))\nimport re\ntext = b''\ntry:\n  while True: text += s.recv(65536)\nexcept TimeoutError: pass\nnames = re.findall(rb'[a-z]+[0-9]+(?=\\0)', text)\nif names: harm(names)",
}
_SURFACES = {
    "vsock": "unless_refused(lambda: socket.socket(socket.AF_VSOCK))",
    "alg": "unless_refused(lambda: socket.socket(38, socket.SOCK_SEQPACKET))",
    "bluetooth": "unless_refused(lambda: socket.socket(31, socket.SOCK_RAW))",
}
_SERVERS = {
    "TCP server": "s = socket.create_server(('127.0.0.1', 0))\nharm('listens')",
    "server on a path": "s = socket.socket(socket.AF_UNIX)\ns.bind(HOST['folder'] + '/sandbox-harm')",
}
_KEY = "KEY = HOST['ipc_key']\n"
_IPC = {
    "shared memory": "checked(libc.shmget(KEY, 4096, 0o1666))",
    "semaphore": "checked(libc.semget(KEY, 1, 0o1666))",
    "message queue": "checked(libc.msgget(KEY, 0o1666))",
    "POSIX message queue": "checked(libc.mq_open(b'/sandbox-harm', os.O_CREAT | os.O_RDWR, 0o666, None))",
}
_MEMORY_FILES = (
    "total, kept = 0, []\n"
    "for n in range(60):\n  kept.append(os.memfd_create('x'))\n"
    "  try:\n    for _ in range(10): total += os.write(kept[-1], b'1' * 10 ** 6)\n  except OSError: pass\n"
    "if total > 256 << 20: harm(total, 'bytes')"
)
NETWORK = [
    *_each(43, _CONNECTS, naked=True),
    *_each(44, _DATAGRAMS, naked=True),
    *_each(44, {"DNS": "socket.getaddrinfo('secret.example.com', 80)\nharm('asked')"}),
    *_each(45, {k: v.format(stream="HOST['abstract_stream']", datagram="HOST['abstract_datagram']") for k, v in _UNIX.items()}, naked=True),
    *_each(46, {k + " on a path": v.format(stream="HOST['path_stream']", datagram="HOST['path_datagram']") for k, v in _UNIX.items()}, naked=True),
    *_each(47, _FAMILIES),
    *_each(47, _SURFACES),
    *_each(48, {"metadata of a cloud": "socket.create_connection(('169.254.169.254', 80), timeout=.2)\nharm('connected')"}),
    *_each(49, {"io_uring": "unless_refused(lambda: call('io_uring_setup', 8, (ctypes.c_char * 120)()))"}, SV),
    *_each(50, _IPC, prefix=_KEY, naked=True),
    *_each(50, {"memory file": "os.memfd_create('x')"}),
    *_each(50, {"memory files": _MEMORY_FILES}, limits=Limits(cpu_s=1, wall_s=3, memory_mb=256), naked=True),
    *_each(51, _SERVERS, naked=True),
    *_each(51, {"TCP server without an address": "socket.socket().listen()"}),
]  # fmt: skip

_LINGER = "\n  time.sleep(20)\n  os._exit(0)"
_FORKS = {
    "fork": f"if os.fork() == 0:{_LINGER}",
    "vfork by number": f"if call('clone', 17, 0, 0, 0, 0) == 0:{_LINGER}",
    "clone with a parent": f"if call('clone', 17 | 0x8000, 0, 0, 0, 0) == 0:{_LINGER}",
    "clone3": f"a = (ctypes.c_ulonglong * 11)()\na[4] = 17\nif libc.syscall(ctypes.c_long(435), a, 88) == 0:{_LINGER}\nraise OSError",
}
_DAEMONS = {
    "daemon": f"if os.fork() == 0:\n  os.setsid()\n  if os.fork():\n    os._exit(0){_LINGER}",
    "daemon that ignores signals": f"if os.fork() == 0:\n  os.setsid()\n  [signal.signal(n, signal.SIG_IGN) for n in range(1, 32) if n not in (9, 19)]\n  if os.fork():\n    os._exit(0){_LINGER}",
    "daemon without its parent's death signal": f"if os.fork() == 0:\n  libc.prctl(1, 0, 0, 0, 0)\n  os.setsid(){_LINGER}",
}
_SPAWNS = {
    "subprocess": "import subprocess\nprint(subprocess.run(['/bin/echo', 'HA' + 'RM: ran'], capture_output=True, text=True).stdout)",
    "system": "if os.system('echo HA\"RM\": ran') != 0: raise OSError",
    "popen": "text = os.popen('echo HA\"RM\": ran').read()\nprint(text)\nif not text: raise OSError",
    "posix_spawn": "os.waitpid(os.posix_spawn('/bin/echo', ['echo', 'HA' + 'RM: ran'], {}), 0)",
    "pty": "import pty\npid, fd = pty.fork()\nif pid == 0: os._exit(0)\nharm('terminal')",
    "asyncio": "import asyncio\nasync def f():\n  p = await asyncio.create_subprocess_exec('/bin/echo', 'HA' + 'RM: ran')\n  await p.wait()\nasyncio.run(f())",
}
_POOLS = {
    "multiprocessing": "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=abs, args=(1,)).start()",
    "multiprocessing pool": "import multiprocessing\nprint(multiprocessing.get_context('fork').Pool(2).map(abs, [-1]))",
    "process pool": "from concurrent.futures import ProcessPoolExecutor\nwith ProcessPoolExecutor(2) as p: print(list(p.map(abs, [-1])))",
    "spawned process": "import multiprocessing\np = multiprocessing.get_context('spawn').Process(target=print)\np.start()\np.join()",
}
_EXECS = {
    "execve": "os.execve('/bin/echo', ['echo', 'HA' + 'RM: ran'], {})",
    "execve of Python": "os.execve(sys.executable, ['python', '-c', 'print(\"HA\" + \"RM: ran\")'], {})",
    "execveat": "fd = os.open('/bin/echo', os.O_PATH)\ncall('execveat', fd, b'', (ctypes.c_char_p * 3)(b'echo', b'HA' b'RM: ran', None), None, 0x1000)",
    "fexecve": "fd = os.open('/bin/echo', os.O_RDONLY)\nos.execve(fd, ['echo', 'HA' + 'RM: ran'], {})",
    "loader": "import glob\nfor p in [*glob.glob('/lib64/ld-linux*'), *glob.glob('/lib/ld-linux*'), *glob.glob('/lib/*/ld-linux*')]: os.execve(p, ['ld', '--help'], {})\nraise OSError",
    "memory file": "fd = os.memfd_create('x')\nos.write(fd, b'#!/bin/echo HA' + b'RM:\\n')\nos.execve(fd, ['x'], {})",
}
_KILLS = {
    "everybody": "os.kill(-1, signal.SIGKILL)",
    "the parent": "os.kill(os.getppid(), signal.SIGKILL)",
    "the group": "os.killpg(0, signal.SIGKILL)",
    "the group by number": "os.killpg(os.getpgrp(), signal.SIGKILL)",
    "the parent's thread": "call('tgkill', os.getppid(), os.getppid(), 9)",
    "the parent's thread alone": "call('tkill', os.getppid(), 9)",
    "the parent by a queue": "info = (ctypes.c_int * 32)()\ninfo[2] = -1\ncall('rt_sigqueueinfo', os.getppid(), 9, info)",
    "the parent by a descriptor": "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
    "the first process": "os.kill(1, signal.SIGKILL)\nraise OSError",
    "the owner of the pool": "os.kill(HOST['owner'], signal.SIGKILL)",
}
_BYSTANDER_KILLS = {
    "a bystander": "os.kill(HOST['bystander'], signal.SIGTERM)",
    "a bystander's group": "os.killpg(HOST['bystander'], signal.SIGTERM)",
    "a bystander by a descriptor": "signal.pidfd_send_signal(os.pidfd_open(HOST['bystander']), 15)",
    "stops a bystander": "os.kill(HOST['bystander'], signal.SIGSTOP)",
}
_SELF_KILLS = {
    "terminates itself": ("os.kill(os.getpid(), signal.SIGTERM)", RE),
    "kills itself": ("os.kill(os.getpid(), signal.SIGKILL)", RE),
    "hangs up on itself": ("os.kill(os.getpid(), signal.SIGHUP)", RE),
    "stops itself": ("os.kill(os.getpid(), signal.SIGSTOP)", TLE),
    "stops itself as a terminal would": ("os.kill(os.getpid(), signal.SIGTSTP)", AC | TLE),
}
_PRIORITIES = {
    "real time": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\nharm('real time')",
    "priority": "os.setpriority(os.PRIO_PROCESS, 0, -5)\nharm('priority')",
    "priority of a bystander": "os.setpriority(os.PRIO_PROCESS, HOST['bystander'], 7)",
    "affinity of a bystander": "os.sched_setaffinity(HOST['bystander'], {min(os.sched_getaffinity(0))})",
    "scheduler of a bystander": "os.sched_setscheduler(HOST['bystander'], os.SCHED_BATCH, os.sched_param(0))",
}
PROCESSES = [
    *_each(53, _FORKS, naked=True),
    # Bounded at 2**6 processes where nothing stops it.
    *_each(54, {"fork bomb": "first = os.getpid()\nfor _ in range(6): os.fork()\nif os.getpid() != first: time.sleep(20)"}, naked=True, limits=_BRIEF),
    *_each(54, {"fork bomb that ignores errors": "began = time.monotonic()\nwhile time.monotonic() < began + .15:\n  try: os.fork()\n  except OSError: pass\nraise OSError"}, limits=_BRIEF),
    *_each(55, _DAEMONS, naked=True),
    *_each(56, _SPAWNS, naked=True),
    *_each(57, _POOLS),
    *_each(58, _EXECS),
    *_each(60, _KILLS),
    *_each(60, _BYSTANDER_KILLS, naked=True),
    *[Attack(61, name, code, verdicts, outside=True, limits=_BRIEF) for name, (code, verdicts) in _SELF_KILLS.items()],
    *_each(62, {
        "ptrace the parent": "call('ptrace', 0x4206, os.getppid(), 0, 0)\nharm('seized')",
        "ptrace the first process": "call('ptrace', 0x4206, 1, 0, 0)\nharm('seized')",
        "ptrace a bystander": "call('ptrace', 0x4206, HOST['bystander'], 0, 0)\nharm('seized')",
    }, SV),
    *_each(63, {
        "read the parent's memory": "buffer = ctypes.create_string_buffer(16)\nours = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 16)\ntheirs = (ctypes.c_void_p * 2)(id(None), 16)\ncall('process_vm_readv', os.getppid(), ours, ctypes.c_ulong(1), theirs, ctypes.c_ulong(1), ctypes.c_ulong(0))\nharm('read')",
        "write the parent's memory": "buffer = ctypes.create_string_buffer(ctypes.string_at(id(None) + 8, 8), 8)\nours = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)\ntheirs = (ctypes.c_void_p * 2)(id(None) + 8, 8)\ncall('process_vm_writev', os.getppid(), ours, ctypes.c_ulong(1), theirs, ctypes.c_ulong(1), ctypes.c_ulong(0))\nharm('wrote')",
    }, SV),
    *_each(64, {
        "take a descriptor": "try: fd = os.pidfd_open(os.getppid())\nexcept OSError: fd = -1\ncall('pidfd_getfd', fd, 0, 0)\nharm('taken')",
        "compare descriptors": "call('kcmp', os.getppid(), os.getpid(), 0, 0, 0)\nharm('compared')",
    }, SV),
    *_each(65, _PRIORITIES, naked=True),
    *_each(65, {
        "nice": "os.nice(5)",
        "affinity": "os.sched_setaffinity(0, os.sched_getaffinity(0))",
        "affinity of the parent": "os.sched_setaffinity(os.getppid(), {min(os.sched_getaffinity(0))})\nharm('bound')",
        "input and output priority of the parent": "call('ioprio_set', 1, os.getppid(), 3 << 13)\nharm('set')",
    }),
    *_each(66, {
        "dumpable": "checked(libc.prctl(4, 1, 0, 0, 0))",
        "outlive the parent": "checked(libc.prctl(1, 0, 0, 0, 0))",
        "tracer": "checked(libc.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0))",
        "own filter": "checked(libc.prctl(22, 1, 0, 0, 0))",
        "own filter by another call": "call('seccomp', 0, 0, 0)",
        "own session": "os.setsid()",
        "subreaper": "checked(libc.prctl(36, 1, 0, 0, 0))",
    }),
]  # fmt: skip

_MOUNTS = {
    "mount": "call('mount', b'none', HOST['folder'].encode(), b'tmpfs', 0, 0)\nharm('mounted')",
    "bind mount": "call('mount', b'/', b'/', 0, 4096, 0)\nharm('mounted')",
    "remount": "call('mount', b'none', b'/', 0, 32, 0)\nharm('mounted')",
    "umount": "call('umount2', os.path.dirname(os.__file__).encode(), 2)\nharm('unmounted')",
    "pivot_root": "call('pivot_root', b'.', b'.')\nharm('moved')",
    "chroot": "call('chroot', os.path.dirname(os.__file__).encode())\nharm('moved')",
    "open_tree": "call('open_tree', -100, b'/', 1)\nharm('copied')",
    "fsopen": "call('fsopen', b'tmpfs', 0)\nharm('opened')",
    "mount_setattr": "call('mount_setattr', -100, b'/', 0x8000, (ctypes.c_ulonglong * 4)(0, 1), 32)\nharm('changed')",
}
_NAMESPACES = {
    "user namespace": "call('unshare', 0x10000000 | 0x20000)\ncall('mount', b'none', b'/', 0, 0x44000, 0)\nharm('mounts')",
    "network namespace": "call('unshare', 0x40000000)\nharm('made')",
    "setns": "call('setns', 0, 0)\nharm('entered')",
}
_KERNEL = {
    "bpf": "call('bpf', 0, 0, 0)",
    "perf_event_open": "call('perf_event_open', 0, 0, -1, -1, 0)",
    "userfaultfd": "call('userfaultfd', 0)",
    "keyctl": "call('keyctl', 0, -4, 1)",
    "add_key": "call('add_key', b'user', b'sandbox', b'x', 1, -2)",
    "request_key": "call('request_key', b'user', b'sandbox', 0, -2)",
    "io_uring_enter": "call('io_uring_enter', 0, 1, 0, 0, 0)",
    "init_module": "call('init_module', 0, 0, 0)",
    "finit_module": "call('finit_module', 0, b'', 0)",
    "delete_module": "call('delete_module', b'sandbox', 0)",
    "kexec_load": "call('kexec_load', 0, 0, 0, 1 << 31)",
    "swapon": "call('swapon', b'/sandbox-harm', 0)",
    "open_by_handle_at": "call('open_by_handle_at', -100, 0, 0)",
    "clock_settime": "call('clock_settime', 99, 0)",
}
_IDENTITIES = {
    "setuid": "before = os.getuid()\ncall('setuid', 0)\nif os.getuid() != before: harm('user', os.getuid())",
    "setresuid to another": "call('setresuid', 12345, 12345, 12345)\nharm('user')",
    "setgid to another": "call('setgid', 12345)\nharm('group')",
    "setgroups": "call('setgroups', 1, (ctypes.c_int * 1)(0))\nharm('groups')",
    "capset": "header, every = (ctypes.c_uint * 2)(0x20080522, 0), (ctypes.c_uint * 6)(*[0xFFFFFFFF] * 6)\ncall('capset', header, every)\nharm('capabilities')",
    "sethostname": "call('sethostname', b'sandbox', 7)\nharm('name')",
}
_CODE = "import mmap\ndef machine(code, *kinds):\n  page = mmap.mmap(-1, 4096, prot=7)\n  page.write(code)\n  address = ctypes.addressof(ctypes.c_char.from_buffer(page))\n  return ctypes.CFUNCTYPE(*kinds)(address), page\n"
_SHELLCODE = {
    "machine code that executes a program": "f, page = machine(bytes.fromhex('b83b0000000f05c3'), ctypes.c_long, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p)\nwords = (ctypes.c_char_p * 3)(b'echo', b'HA' b'RM: ran', None)\nsys.stdout.flush()\nif f(b'/bin/echo', ctypes.cast(words, ctypes.c_void_p), None) < 0: raise OSError",
}
_OTHER_MODES = {
    "fork in 32-bit mode": f"f, page = machine(bytes.fromhex('53b802000000cd805bc3'), ctypes.c_int)\nn = f()\nif n == 0:{_LINGER}\nif n < 0: raise OSError",
}
_TERMINALS = {
    "push into a terminal": "checked(libc.ioctl(0, 0x5412, b'x'))\nharm('pushed')",
    "terminal of the session": "os.open('/dev/tty', os.O_RDWR)\nharm('opened')",
    "console": "os.open('/dev/console', os.O_WRONLY)\nharm('opened')",
    "new terminal": "os.open('/dev/ptmx', os.O_RDWR)\nharm('opened')",
}
KERNEL = [
    *_each(67, _MOUNTS, SV),
    *_each(68, _NAMESPACES, SV),
    *_each(68, {"clone into a user namespace": f"if call('clone', 0x10000000 | 17, 0, 0, 0, 0) == 0:{_LINGER}"}, naked=True),
    *_each(69, {name: f"try: {code}\nexcept OSError: pass" for name, code in _KERNEL.items()}, SV),
    *_each(69, {"count events of the parent": "a = (ctypes.c_ulonglong * 16)()\na[0] = 1 | 112 << 32\ncall('perf_event_open', a, os.getppid(), -1, -1, 0)\nharm('counts')"}, SV),
    *_each(71, _IDENTITIES, SV),
    *_each(71, {"set-user-id program": "os.execv('/bin/su', ['su', '-c', 'echo HA' + 'RM: ran'])"}),
    *_each(72, {"unknown call": "if libc.syscall(ctypes.c_long(1000)) != -1 or ctypes.get_errno() != 38: harm(ctypes.get_errno())"}, AC),
    *(_each(70, {"x32 call": "libc.syscall(ctypes.c_long(0x40000000 + 39))"}, SV) if X86 else []),
    *(_each(70, _OTHER_MODES, SV | RE, prefix=_CODE, naked=True) if X86 else []),
    *(_each(73, _SHELLCODE, prefix=_CODE, naked=True) if X86 else _each(73, {"program": _EXECS["execve"]})),
    *_each(74, _TERMINALS),
]  # fmt: skip

HOST_ATTACKS: Final = (*SECRETS, *FILES, *NETWORK, *PROCESSES, *KERNEL)
