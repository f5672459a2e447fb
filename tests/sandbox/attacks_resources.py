"""Attacks 75-92: programs that take more than they are given."""

# ruff: noqa: E501 - hostile programs are easier to read on one line

from __future__ import annotations

from typing import Final

from attacks import AC, CE, MLE, OLE, QUICK, RE, SHORT, SLEEPER, TLE, WA, Attack

from sandbox import Limits

_WIDE = Limits(cpu_s=0.15, wall_s=3.0, memory_mb=256)

TIME = [
    Attack(75, "busy loop", "while True: pass", TLE, limits=SHORT),
    Attack(75, "busy threads", "import threading\ndef f():\n  while True: pass\nfor _ in range(4): threading.Thread(target=f).start()", TLE, limits=SHORT, slow=True),
    Attack(76, "power", "10 ** 10 ** 8", TLE, limits=SHORT),
    Attack(76, "regular expression", "import re\nre.match('(a+)+$', 'a' * 50 + 'b')", TLE, limits=SHORT),
    Attack(76, "sum in C", "sum(range(10 ** 12))", TLE, limits=SHORT, slow=True),
    Attack(77, "sleep", "import time\ntime.sleep(1e9)", TLE, limits=SLEEPER),
    Attack(77, "select", "import select\nselect.select([], [], [])", TLE, limits=SLEEPER, slow=True),
    Attack(77, "deadlock", "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()", TLE, limits=SLEEPER),
    Attack(77, "lock in a signal handler", "import signal, threading\nlock = threading.Lock()\nsignal.signal(14, lambda *a: lock.acquire())\nlock.acquire()\nsignal.setitimer(0, .01)\nsignal.pause()", TLE, limits=SLEEPER, slow=True),
    Attack(77, "pause without signals", "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nsignal.pause()", TLE, limits=SLEEPER, slow=True),
    Attack(77, "pipe to itself", "import os\nr, w = os.pipe()\nos.read(r, 1)", TLE, limits=SLEEPER, slow=True),
    Attack(77, "sleep in a finaliser", "import time\nclass A:\n  def __del__(self, sleep=time.sleep): sleep(1e9)\na = A()\nprint('ok')", TLE, limits=SLEEPER, slow=True),
    Attack(78, "ignores every signal and catches everything", "import signal\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n  except Exception: pass\nwhile True:\n  try:\n    while True: pass\n  except BaseException: pass", TLE, limits=SHORT),
    Attack(78, "handles every signal", "import signal\nfor s in range(1, 65):\n  try: signal.signal(s, lambda *a: None)\n  except Exception: pass\nwhile True: pass", TLE, limits=SHORT, slow=True),
    Attack(90, "loop at import", "while True: pass\ndef f(): return 'ok'", TLE, "call", limits=SHORT),
    Attack(90, "module of another name", "open('json.py', 'w').write('raise SystemExit')\nimport json\nprint('ok')", RE),
    Attack(90, "module beside the library", "import os\nopen(os.path.dirname(os.__file__) + '/sandbox_harm.py', 'w')\nprint('ok')", RE),
    Attack(92, "dictionary of equal hashes", "m = (1 << 61) - 1\nd = {m * i: i for i in range(10 ** 6)}\nprint('ok')", TLE, limits=_WIDE),
    Attack(92, "set of equal hashes", "class A:\n  __hash__ = lambda s: 1\n  __eq__ = lambda s, o: False\ns = {A() for _ in range(10 ** 6)}\nprint('ok')", TLE, limits=SHORT, slow=True),
]  # fmt: skip

# A limit that is in force, and one more than it.
_HARD = "import resource\nhard = resource.getrlimit(resource.RLIMIT_{0})[1]\nif hard == resource.RLIM_INFINITY: raise OSError('there is no limit')\n"
_RAISE = _HARD + "resource.setrlimit(resource.RLIMIT_{0}, (hard + 1, hard + 1))\nharm('RLIMIT_{0} was raised')"
LIMITS = [
    *(Attack(79, f"raises RLIMIT_{name}", _RAISE.format(name), RE, outside=True) for name in ("CPU", "AS", "FSIZE", "NOFILE", "CORE", "MEMLOCK")),
    Attack(79, "raises a limit by another call", _HARD.format("CPU") + "limits = (ctypes.c_ulong * 2)(hard + 1, hard + 1)\ncall('prlimit64', 0, 0, limits, 0)\nharm('RLIMIT_CPU was raised')", RE, outside=True),
    Attack(79, "changes another process's limits", "import resource\nresource.prlimit(HOST['bystander'], resource.RLIMIT_NOFILE, (7, 7))", RE, outside=True, naked=True),
    Attack(79, "changes its parent's limits", "import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (7, 7))\nharm('changed')", RE, outside=True),
]  # fmt: skip

# Bounded, so that they are no danger to the machine where the limit is switched off: up to 600 MB, where 256 are allowed.
_TOOK = "\nharm('took more than its limit')"
MEMORY = [
    Attack(80, "list bomb", "x = [b'1' * 10 ** 7 for _ in range(60)]" + _TOOK, MLE, outside=True, naked=True),
    Attack(80, "string bomb", "x = 'x' * 10 ** 8\nx = x * 6" + _TOOK, MLE, outside=True, naked=True),
    Attack(80, "anonymous mapping", "import mmap\nx = [mmap.mmap(-1, 10 ** 7) for _ in range(60)]\n[m.write(b'1' * 10 ** 7) for m in x]" + _TOOK, MLE | RE, outside=True, naked=True),
    Attack(80, "huge block", "x = bytearray(10 ** 11)", MLE),
    Attack(80, "bomb after the answer", "print('ok', flush=True)\nx = bytearray(10 ** 11)", MLE),
    Attack(80, "bomb in a call", "def f(): return bytearray(10 ** 11)", MLE, "call"),
    Attack(81, "catches MemoryError and goes on", "try:\n  bytearray(10 ** 11)\nexcept MemoryError:\n  print('ok')", AC),
    Attack(81, "catches MemoryError and answers wrong", "try:\n  bytearray(10 ** 11)\nexcept MemoryError:\n  print('no')", WA),
    Attack(87, "unlimited recursion", "import sys\nsys.setrecursionlimit(1 << 30)\ndef f(): f()\nf()", RE | MLE | TLE, limits=_WIDE),
    Attack(88, "zlib bomb", "import zlib\nc = zlib.compressobj(9, zlib.DEFLATED, -15)\nblock = c.compress(bytes(1 << 20)) + c.flush(zlib.Z_FULL_FLUSH)\nx = zlib.decompressobj(-15).decompress(block * 400)" + _TOOK, MLE, outside=True, naked=True, slow=True),
    Attack(88, "gzip bomb", "import gzip, zlib\nc = zlib.compressobj(9, zlib.DEFLATED, 31)\nblock = c.compress(bytes(1 << 22)) + c.flush()\nx = gzip.decompress(block * 100)" + _TOOK, MLE, outside=True, naked=True, slow=True),
    Attack(88, "pickle bomb", "import pickle\npickle.loads(b'cbuiltins\\nbytearray\\n(I100000000000\\ntR.')", MLE | TLE),
    Attack(88, "XML bomb", "import xml.etree.ElementTree as E\ntext = '<!DOCTYPE a [<!ENTITY e0 \"' + 'x' * 1000 + '\">' + ''.join(f'<!ENTITY e{n + 1} \"' + f'&e{n};' * 20 + '\">' for n in range(9)) + ']><a>&e9;</a>'\nE.fromstring(text)\nprint('ok')", MLE | TLE | RE),
    Attack(88, "zip bomb to disk", "import io, tempfile, zipfile\nbuffer = io.BytesIO()\nwith zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('sandbox-harm', bytes(10 ** 7))\nzipfile.ZipFile(buffer).extractall('/tmp')\nprint('ok')", RE),
]  # fmt: skip

_LIMITED = Limits(cpu_s=0.3, wall_s=3.0, memory_mb=256, output_bytes=100_000)
OUTPUT = [
    Attack(83, "flood", "while True: print('x' * 1000)", OLE, limits=_LIMITED),
    Attack(83, "flood on stderr", "import sys\nwhile True: sys.stderr.write('x' * 1000)", OLE, limits=_LIMITED),
    Attack(83, "flood that ignores errors", "import os\nwhile True:\n  try: os.write(1, b'x' * 1000)\n  except OSError: pass", OLE | TLE, limits=_LIMITED),
    Attack(83, "more than the limit", "for _ in range(3000): os.write(1, b'x' * 10 ** 5)\nos.write(2, b'HA' + b'RM: three hundred megabytes')", OLE, outside=True, naked=True, limits=_LIMITED),
    Attack(83, "flood of a returned value", "def f(): return 'x' * 10 ** 6", OLE, "call", limits=_LIMITED),
    Attack(84, "sparse output", "import os\nos.ftruncate(1, 1 << 40)", RE | OLE),
    Attack(84, "sparse output by seeking", "import os\nos.lseek(1, 1 << 40, 0)\nos.write(1, b'x')", RE | OLE),
    Attack(84, "sparse output by position", "import os\nos.pwrite(1, b'x', 1 << 40)", RE | OLE),
    Attack(84, "sparse output up to the limit", "import os\nos.ftruncate(1, 100_000)", OLE, limits=_LIMITED),
    Attack(85, "closes its streams", "import os\nfor fd in range(3): os.close(fd)\nprint('ok')", RE),
    Attack(85, "closes everything", "import os\nos.closerange(0, 4096)\nprint('ok')", RE),
    Attack(85, "stdin over stdout", "import os\nos.dup2(0, 1)\nprint('ok')", RE),
    Attack(85, "closes the result", "import os\ndef f():\n  os.closerange(0, 64)\n  return 'ok'", RE, "call"),
    Attack(85, "writes to stdin", "import os\nos.write(0, b'x')\nprint('ok')", RE),
    Attack(85, "empties stdin", "import os\nos.ftruncate(0, 0)\nprint('ok')", RE, stdin="x"),
    Attack(91, "many small prints", "for i in range(10 ** 5): print(1)", AC, expected="1\n" * 10**5, limits=QUICK),
    Attack(91, "many small prints, flushed", "for i in range(10 ** 5): print(1, flush=True)", AC, expected="1\n" * 10**5, limits=Limits(cpu_s=4), slow=True),
]  # fmt: skip

CRASHES = [
    Attack(86, "segmentation fault", "import ctypes\nctypes.string_at(0)", RE),
    Attack(86, "abort", "import os\nos.abort()", RE),
    Attack(86, "floating point exception", "import signal\nsignal.raise_signal(signal.SIGFPE)", RE),
    Attack(86, "illegal instruction", "import signal\nsignal.raise_signal(signal.SIGILL)", RE),
    Attack(86, "overflow of the C stack", "import ctypes\nT = ctypes.CFUNCTYPE(None)\n@T\ndef f(): f()\nimport sys\nsys.setrecursionlimit(1 << 30)\nf()", RE | MLE | TLE),
    Attack(86, "segmentation fault in a call", "import ctypes\ndef f(): ctypes.memset(8, 0, 8)", RE, "call"),
]  # fmt: skip

SOURCES = [
    Attack(89, "parentheses", "(" * 5000 + ")" * 5000, CE),
    Attack(89, "brackets", "[" * 100_000, CE),
    Attack(89, "long line", "x = '" + "y" * 250_000 + "'\nprint('ok')", AC),
    Attack(89, "long sum", "x = 1" + " + 1" * 60_000 + "\nprint('ok')", CE | AC | RE),
    Attack(89, "long chain", "x = a" + ".a" * 100_000, CE),
    Attack(89, "minus signs", "x = " + "-" * 200_000 + "1", CE),
    Attack(89, "powers", "x = " + "1**" * 80_000 + "1", CE),
    Attack(89, "lambdas", "x = " + "lambda:" * 30_000 + "1", CE),
    Attack(89, "indentation", "".join(" " * n + "if 1:\n" for n in range(200)), CE),
    Attack(89, "folded constants", "x = (((((1,) * 100) * 100) * 100) * 100) * 100\ny = 'a' * 10 ** 12\n", MLE | TLE),
    Attack(89, "NUL", "print('ok')\0", CE),
    Attack(89, "not UTF-8", "print('\udcff')", CE),
    Attack(89, "lone surrogate", "x = '\ud800'", CE),
    Attack(89, "form feed", "\fprint('ok')\f\n", AC),
    Attack(89, "coding cookie utf-7", "# coding: utf-7\nprint('ok')", AC | CE, needs_files=AC | CE),
    Attack(89, "coding cookie of no text", "# coding: zlib\nprint('ok')", CE),
    Attack(89, "coding cookie of nothing", "# coding: nope\nprint('ok')", CE),
]  # fmt: skip

RESOURCES: Final = (*TIME, *LIMITS, *MEMORY, *OUTPUT, *CRASHES, *SOURCES)
