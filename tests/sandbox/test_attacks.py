"""Hostile programs: each gets the verdict it deserves, at every level, and leaves no trace."""

# ruff: noqa: E501 - hostile programs are easier to read on one line

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_bench import QUICK, Bench

from sandbox import CallCase, Limits, StdioCase, Verdict

SECRET = "expected-4711-secret"

FORGERIES = {
    "always equal object": (
        "class E:\n  __eq__ = lambda s, o: True\n  __ne__ = lambda s, o: False\n  __hash__ = lambda s: 0\ndef f(): return E()",
        Verdict.RUNTIME_ERROR,
    ),
    "liar for isclose": (
        "class E:\n  __sub__ = __rsub__ = __abs__ = __float__ = __round__ = lambda *a: 0.0\ndef f(): return E()",
        Verdict.RUNTIME_ERROR,
    ),
    "lying str": (
        "class S(str):\n  __eq__ = lambda s, o: True\n  __ne__ = lambda s, o: False\n  __hash__ = str.__hash__\n"
        "  def __str__(s): return 'ok'\n  __repr__ = __format__ = __str__\ndef f(): return S('no')",
        Verdict.WRONG_ANSWER,
    ),
    "lying list": (
        "class L(list):\n  __eq__ = lambda s, o: True\n  __iter__ = lambda s: iter('ok')\n  __len__ = lambda s: 2\n"
        "  __class__ = str\ndef f(): return L([1])",
        Verdict.WRONG_ANSWER,
    ),
    "lying metaclass": (
        "class M(type):\n  __mro__ = (str, object)\n  def mro(c): return [c, object]\nclass A(metaclass=M): pass\n"
        "def f(): return A()",
        Verdict.RUNTIME_ERROR,
    ),
    "patched builtins": (
        "import builtins, math, json, operator\n"
        "for n in ('isinstance', 'all', 'any', 'len', 'abs', 'sorted', 'print'): setattr(builtins, n, lambda *a, **k: True)\n"
        "builtins.AssertionError = Exception\nmath.isclose = operator.eq = lambda *a, **k: True\ndef f(): return 'no'",
        None,
    ),
    "patched json": (
        "import json\njson.dumps = lambda *a, **k: '\"ok\"'\njson.JSONEncoder.encode = lambda *a: '\"maybe\"'\ndef f(): return 'no'",
        Verdict.WRONG_ANSWER,
    ),
    "os._exit(0)": ("import os\ndef f(): os._exit(0)", Verdict.RUNTIME_ERROR),
    "exit codes of other judges": ("import os\ndef f(): os._exit(97)", Verdict.RUNTIME_ERROR),
    "exit at import": ("raise SystemExit(0)", Verdict.RUNTIME_ERROR),
    "frame walk": (
        "import sys\ndef f():\n  found = []\n  frame = sys._getframe()\n  while frame:\n"
        "    found += [str(v) for v in frame.f_locals.values()]\n    frame = frame.f_back\n"
        "  return any('4711-' + 'secret' in text for text in found)",
        Verdict.WRONG_ANSWER,
    ),
    "collector scan": (
        "import gc\ndef f():\n  return any(type(o) is str and '4711-' + 'secret' in o for o in gc.get_objects())",
        Verdict.WRONG_ANSWER,
    ),
    "writes to every descriptor": (
        "import os\ndef f():\n  for fd in range(3, 1024):\n    for text in (b'BR', b'{\"verdict\": \"accepted\"}', b'C', b'E'):\n"
        "      try: os.write(fd, text)\n      except OSError: pass\n  os._exit(0)",
        Verdict.RUNTIME_ERROR,
    ),
    "replaces the runner": (
        "import __main__, sys\n__main__.check = __main__.candidate = lambda *a: True\n"
        "for m in list(sys.modules.values()):\n  for n in ('_run_for_value', '_leave', 'dumps', 'values_match'):\n"
        "    if hasattr(m, n): setattr(m, n, lambda *a: '\"ok\"')\ndef f(): return 'no'",
        None,
    ),
    "tracing": (
        "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\nsys.addaudithook(lambda *a: None)\n"
        "def f(): return 'no'",
        Verdict.WRONG_ANSWER,
    ),
    "raises MemoryError": ("def f(): raise MemoryError('x')", Verdict.MEMORY_LIMIT),
    "SIGSYS to itself": ("import os, signal\ndef f(): os.kill(os.getpid(), signal.SIGSYS)", Verdict.SECURITY_VIOLATION),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_answers(bench: Bench, name: str) -> None:
    source, verdict = FORGERIES[name]
    result = bench.value(source, expected=SECRET)
    assert result.verdict not in (Verdict.ACCEPTED, Verdict.SANDBOX_ERROR), result
    assert verdict is None or result.verdict is verdict, result


@pytest.mark.parametrize(
    "text", ["B", "R", "C", "E", "accepted", '{"verdict": "accepted"}', "\ufeffok", "ok\0", "ok no maybe"]
)
def test_fake_stage_bytes_and_records_are_just_output(bench: Bench, text: str) -> None:
    source = f"import os\nfor fd in (1, 2):\n  os.write(fd, {text.encode()!r})\nfor fd in range(3, 300):\n" + (
        f"  try: os.write(fd, {text.encode()!r}); print('wrote', fd)\n  except OSError: pass"
    )
    result = bench.script(source)
    assert result.verdict is Verdict.WRONG_ANSWER
    assert "wrote" not in result.stdout_head


def test_expected_value_is_nowhere_in_the_process(bench: Bench) -> None:
    # The marker is built at run time, so the program's own source does not contain it.
    source = (
        "import ctypes, gc\nneedle = b'4711-' + b'secret'\n"
        "def f():\n  hits = 0\n  for o in gc.get_objects():\n    hits += needle in repr(type(o)).encode()\n"
        "  try:\n    maps = open('/proc/self/maps').read()\n  except OSError:\n    return 'no maps'\n  return 'maps'"
    )
    result = bench.value(source, expected=SECRET)
    assert result.returned == '"no maps"'


def test_sys_modules_poison_does_not_reach_the_next_run(bench: Bench) -> None:
    poison = "import math, sys, builtins\nmath.floor = lambda x: 99\nsys.modules['json'] = None\nbuiltins.sum = None\nprint('ok')"
    assert bench.script(poison).verdict is Verdict.ACCEPTED
    clean = (
        "import json, math\nprint('ok' if math.floor(1.5) == 1 and sum([1]) == 1 and json.dumps([]) == '[]' else 'no')"
    )
    assert bench.script(clean).verdict is Verdict.ACCEPTED


def test_every_test_gets_a_fresh_process(bench: Bench) -> None:
    source = "n = 0\ndef f():\n  global n\n  n += 1\n  return n"
    assert bench.judge(source, *[CallCase(expected=1)] * 3, entry_point="f").passed == 3


def test_only_our_environment_and_streams(bench: Bench) -> None:
    source = (
        "import os\nprint(sorted(os.environ))\nopen_fds = []\nfor fd in range(4096):\n"
        "  try: os.fstat(fd); open_fds.append(fd)\n  except OSError: pass\nprint(open_fds)"
    )
    names, fds = bench.stdout(source).stdout.splitlines()
    allowed = {"LANG", "LC_CTYPE", "PYTHONHASHSEED", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TZ"}
    assert set(eval(names)) <= allowed | {"LD_LIBRARY_PATH"}
    assert fds == "[0, 1, 2]"


@pytest.fixture
def canary() -> Iterator[Path]:
    """A file that everybody may write, in a folder that everybody may enter."""
    path = Path(f"/tmp/sandbox-canary-{os.getpid()}")
    path.write_text("untouched")
    path.chmod(0o666)
    yield path
    path.unlink()


def _attempt(code: str) -> str:
    """A program that says whether `code` worked."""
    body = "\n".join("    " + line for line in code.splitlines())
    return f"import os, socket, signal, ctypes\ndef work():\n{body}\ntry:\n  work()\n  print('DONE')\nexcept (OSError, AttributeError) as e:\n  print(type(e).__name__)\n"


FILES = {
    "read": "open(PATH).read()",
    "write": "open(PATH, 'w').write('x')",
    "append": "open(PATH, 'a').write('x')",
    "unlink": "os.unlink(PATH)",
    "rename": "os.rename(PATH, PATH + '.moved')",
    "chmod": "os.chmod(PATH, 0o600)",
    "utime": "os.utime(PATH, (0, 0))",
    "truncate": "os.truncate(PATH, 0)",
    "link": "os.link(PATH, PATH + '.link')",
    "symlink": "os.symlink(PATH, PATH + '.link')",
    "mkdir": "os.mkdir(PATH + '.dir')",
    "mkfifo": "os.mkfifo(PATH + '.fifo')",
    "create beside": "open(PATH + '.new', 'x')",
    "create in /dev/shm": "open('/dev/shm/sandbox-new', 'x')",
    "create in the working directory": "open('sandbox-new', 'x')",
    "xattr": "os.setxattr(PATH, 'user.x', b'1')",
    "passwd": "open('/etc/passwd').read()",
    "home": "os.listdir(os.path.expanduser('~root'))",
    "parent environment": "open(f'/proc/{os.getppid()}/environ', 'rb').read()",
    "own memory": "open('/proc/self/mem', 'rb')",
    "init": "open('/proc/1/cmdline').read()",
    "kubernetes": "open('/var/run/secrets/kubernetes.io/serviceaccount/token').read()",
    "project": "open(PROJECT).read()",
    "stdlib patch": "open(os.__file__, 'a').write('#')",
    "stdlib unlink": "os.unlink(os.__file__)",
}


@pytest.mark.parametrize("name", FILES)
def test_files(bench: Bench, canary: Path, name: str) -> None:
    project = str(Path(__file__).resolve().parents[2] / "pyproject.toml")
    source = _attempt(FILES[name].replace("PATH", repr(str(canary))).replace("PROJECT", repr(project)))
    before = Path(os.__file__).stat().st_size
    output = bench.stdout(source)
    assert output.ok and "DONE" not in output.stdout, output
    assert canary.read_text() == "untouched" and canary.stat().st_mode & 0o777 == 0o666
    assert not list(Path("/tmp").glob(canary.name + ".*"))
    assert not Path("/dev/shm/sandbox-new").exists()
    assert Path(os.__file__).stat().st_size == before


def test_tcp_and_udp_and_unix_sockets(bench: Bench) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0sandbox-test-{os.getpid()}")
    abstract.listen()
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagram.bind(f"\0sandbox-dgram-{os.getpid()}")
    codes = [
        f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53))",
        f"socket.socket(socket.AF_UNIX).connect('\\0sandbox-test-{os.getpid()}')",
        f"a, b = socket.socketpair(type=socket.SOCK_DGRAM)\na.sendto(b'x', '\\0sandbox-dgram-{os.getpid()}')",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "socket.socket(socket.AF_VSOCK)",
        "socket.create_server(('127.0.0.1', 0))",
    ]
    for one in (server, abstract, datagram):
        one.setblocking(False)
    for code in codes:
        output = bench.stdout(_attempt(code))
        assert output.ok and output.stdout.strip() not in ("DONE", ""), (code, output)
    for listener in (server, abstract):
        with pytest.raises(BlockingIOError):
            listener.accept()
    with pytest.raises(BlockingIOError):
        datagram.recv(1)
    for one in (server, abstract, datagram):
        one.close()


PROCESSES = {
    "fork": "os.fork()",
    "fork bomb": "while True: os.fork()",
    "vfork and exec": "import subprocess\nsubprocess.run(['/bin/true'])",
    "os.system": "assert os.system('true') == 0 or os._exit(9)\nraise OSError",
    "exec": "os.execv('/bin/true', ['true'])",
    "posix_spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "kill parent": "os.kill(os.getppid(), signal.SIGKILL)",
    "kill everybody": "os.kill(-1, signal.SIGKILL)",
    "kill the group": "os.killpg(0, signal.SIGKILL)",
    "setsid": "os.setsid()",
    "priority": "os.setpriority(os.PRIO_PROCESS, 0, -5)",
    "affinity": "os.sched_setaffinity(0, {0})",
    "memory file": "os.memfd_create('x')",
    "raise limits": "import resource\ntry:\n  resource.setrlimit(resource.RLIMIT_CPU, (9999, 9999))\nexcept ValueError: raise OSError",
    "prctl": "if ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) < 0: raise OSError",
}


@pytest.mark.parametrize("name", PROCESSES)
def test_processes(bench: Bench, name: str) -> None:
    output = bench.stdout(_attempt(PROCESSES[name]))
    assert "DONE" not in output.stdout, output
    assert output.verdict in (Verdict.ACCEPTED, Verdict.RUNTIME_ERROR)
    assert bench.script("print('ok')").verdict is Verdict.ACCEPTED


def test_multiprocessing_fails_and_does_not_hang(bench: Bench) -> None:
    result = bench.script("import multiprocessing\nmultiprocessing.Process(target=print).start()\nprint('ok')")
    assert result.verdict is Verdict.RUNTIME_ERROR and result.wall_s < 1


KILLERS = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "mount": (165, 40),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "setuid": (105, 146),
    "capset": (126, 91),
}


@pytest.mark.parametrize("name", KILLERS)
def test_forbidden_calls(bench: Bench, name: str) -> None:
    number = KILLERS[name][os.uname().machine == "aarch64"]
    result = bench.script(f"import ctypes\nctypes.CDLL(None).syscall({number}, 0, 0, 0, 0, 0)\nprint('ok')")
    assert result.verdict is Verdict.SECURITY_VIOLATION


def test_unknown_call_is_not_implemented(bench: Bench) -> None:
    source = "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\nlibc.syscall({})\nprint(errno.errorcode[ctypes.get_errno()])"
    for number in (1000, 435):  # an unknown one, and clone3
        assert bench.stdout(source.format(number)).stdout == "ENOSYS\n"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="calls of other x86 modes")
def test_x32_call(bench: Bench) -> None:
    result = bench.script(f"import ctypes\nctypes.CDLL(None).syscall({0x40000000 + 39})\nprint('ok')")
    assert result.verdict is Verdict.SECURITY_VIOLATION


HONEST = {
    "threads": "import threading\nts = [threading.Thread(target=print, args=('ok',)) for _ in range(1)]\n[t.start() for t in ts]\n[t.join() for t in ts]",
    "asyncio": "import asyncio\nasync def main():\n  await asyncio.sleep(0)\n  print('ok')\nasyncio.run(main())",
    "thread pool": "from concurrent.futures import ThreadPoolExecutor as P\nwith P(4) as p: print(list(p.map(str, ['ok']))[0])",
    "queue": "import queue\nq = queue.Queue()\nq.put('ok')\nprint(q.get())",
    "stack size": (
        "import sys, threading\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(64 << 20)\n"
        "def f(n): return n and f(n - 1)\nt = threading.Thread(target=lambda: print('ok' if f(50000) == 0 else 'no'))\nt.start()"
    ),
    "alarm": "import signal\ntry:\n  signal.signal(14, lambda *a: 1 / 0)\n  signal.setitimer(0, .05)\n  signal.pause()\nexcept ZeroDivisionError: print('ok')",
    "lower a limit": "import resource\nresource.setrlimit(resource.RLIMIT_STACK, (1 << 25, resource.RLIM_INFINITY))\nprint('ok')",
    "usual imports": (
        "import bisect, collections, copy, datetime, decimal, fractions, functools, heapq, itertools, json, math, operator, os, "
        "random, re, string, sys, time, typing, statistics\nprint('ok')"
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_work(bench: Bench, name: str) -> None:
    result = bench.script(HONEST[name])
    assert result.verdict is Verdict.ACCEPTED, result


def test_imports_from_the_library(bench: Bench) -> None:
    if bench.pool.isolation.level == 1:
        pytest.skip("no file system at this level")
    source = "import difflib, sqlite3, xml.etree.ElementTree, zoneinfo, lzma, os\nopen(os.devnull, 'w').write('x')\nprint('ok')"
    assert bench.script(source).verdict is Verdict.ACCEPTED


def test_thread_bomb_stays_inside(bench: Bench) -> None:
    source = (
        "import threading, time\nn = 0\ntry:\n  while n < 2000:\n"
        "    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n    n += 1\nexcept RuntimeError: pass\nprint(n)"
    )
    output = bench.stdout(source, limits=Limits(cpu_s=2, wall_s=6, memory_mb=256))
    assert output.ok and int(output.stdout) < 2000
    if bench.pool.isolation.layers["threads"] == "enforced":
        assert int(output.stdout) <= 16


@pytest.mark.parametrize("layer", ["mount", "landlock", "seccomp", "scratch_user"])
def test_a_single_missing_layer_is_backed_by_another(layer: str, canary: Path) -> None:
    bench = Bench(level=3, disabled_layers=[layer])
    try:
        for name in ("write", "unlink", "chmod", "create beside", "passwd", "parent environment", "project"):
            project = str(Path(__file__).resolve().parents[2] / "pyproject.toml")
            output = bench.stdout(
                _attempt(FILES[name].replace("PATH", repr(str(canary))).replace("PROJECT", repr(project)))
            )
            assert "DONE" not in output.stdout, (name, output)
        output = bench.stdout(_attempt("os.kill(os.getppid(), 9)"))
        assert "DONE" not in output.stdout and output.verdict is not Verdict.SANDBOX_ERROR
        server = socket.create_server(("127.0.0.1", 0))
        server.setblocking(False)
        bench.stdout(_attempt(f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=1)"))
        with pytest.raises(BlockingIOError):
            server.accept()
        server.close()
        assert canary.read_text() == "untouched"
    finally:
        bench.close()


def test_hash_collisions_do_not_stall_the_judge(best: Bench) -> None:
    source = "def f():\n  m = (1 << 61) - 1\n  return set(range(0))"
    forged = (
        "import os\ndef f():\n  m = (1 << 61) - 1\n"
        "  text = '{\"$set\":[' + ','.join('{\"$int\":\"%s\"}' % hex(m * i << 3) for i in range(20000)) + ']}'\n"
        "  os.write(3, text.encode())\n  os._exit(0)"
    )
    assert best.value(source, expected=set()).verdict is Verdict.ACCEPTED
    result = best.value(forged, expected=set())
    assert result.verdict is Verdict.RUNTIME_ERROR and "equal hashes" in (result.detail or "")


def test_huge_integers_are_compared_and_shown(best: Bench) -> None:
    result = best.value("def f(): return 10 ** 20000", expected=10**20000 + 1)
    assert result.verdict is Verdict.WRONG_ANSWER
    assert best.value("def f(): return 10 ** 20000", expected=10**20000).verdict is Verdict.ACCEPTED
    assert best.value("def f(): return 10 ** 20000", expected=1.5).verdict is Verdict.WRONG_ANSWER


@pytest.mark.parametrize("memory_mb", [16, 64])
def test_small_memory_is_the_program_s_own_trouble(bench: Bench, memory_mb: int) -> None:
    limits = Limits(cpu_s=1, memory_mb=memory_mb)
    assert bench.script("print('ok')", limits=limits).verdict is Verdict.ACCEPTED
    assert bench.script("x = 'a' * (1 << 27)", limits=limits).verdict is Verdict.MEMORY_LIMIT
    assert bench.script("import math\n" + "x = 1\n" * 40000, "", "", limits=limits).verdict is not Verdict.SANDBOX_ERROR


@pytest.mark.parametrize("output_bytes", [1, 100])
def test_small_output_limit(bench: Bench, output_bytes: int) -> None:
    limits = Limits(cpu_s=1, output_bytes=output_bytes)
    assert bench.script("print('o' * 1000)", limits=limits).verdict is Verdict.OUTPUT_LIMIT
    assert bench.script("x = (", limits=limits).verdict is Verdict.COMPILE_ERROR
    assert bench.script("pass", "", "", limits=limits).verdict is Verdict.ACCEPTED


@pytest.mark.parametrize(
    "text", ["[" * 50000, "9" * 10000, '{"$set":[[]]}', '{"$x":1}', "NaN", "1e999", '"\\ud800"', "\xff"]
)
def test_malformed_values(best: Bench, text: str) -> None:
    forged = f"import os\ndef f():\n  os.write(3, {text.encode('latin-1')!r})\n  os._exit(0)"
    assert best.value(forged).verdict in (Verdict.RUNTIME_ERROR, Verdict.WRONG_ANSWER)


def test_no_thread_of_ours_sees_a_signal(best: Bench) -> None:
    # The pool runs in a thread that is not the main one and installs no signal handler.
    assert threading.current_thread() is threading.main_thread()
    assert best.judge("print('ok')", StdioCase(stdin="", expected="ok"), limits=QUICK).verdict is Verdict.ACCEPTED
