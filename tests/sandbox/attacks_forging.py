"""Attacks 1-30: programs that want to be accepted without an answer."""

# ruff: noqa: E501 - hostile programs are easier to read on one line

from __future__ import annotations

from typing import Any, Final

from attacks import AC, MLE, RE, SHORT, SLEEPER, SV, TLE, WA, Attack

from sandbox import CloseValue, Verdict

SECRET: Final = "expected-4711-secret"
# Finds the expected value by its shape; the pattern itself does not match it.
FIND = "import re\nfound = lambda text: (re.findall('expected-[0-9]{4}-secret', text) or ['nothing'])[0]\n"


def _script(
    number: int, name: str, source: str, verdicts: frozenset[Verdict] = WA, expected: str = SECRET, **fields: Any
) -> Attack:
    return Attack(number, name, source, verdicts, expected=expected, forging=verdicts != AC, **fields)


def _call(
    number: int, name: str, source: str, verdicts: frozenset[Verdict] = WA, expected: Any = SECRET, **fields: Any
) -> Attack:
    return Attack(number, f"{name} in a call", source, verdicts, "call", expected=expected, forging=True, **fields)


ENDS = [
    _script(1, "sys.exit before output", "import sys\nsys.exit(0)"),
    _call(1, "sys.exit", "import sys\ndef f(): sys.exit(0)", RE),
    _call(1, "exit at import", "raise SystemExit(0)", RE),
    _script(2, "os._exit", "import os\nos._exit(0)"),
    _call(2, "os._exit", "import os\ndef f(): os._exit(0)", RE),
    _script(3, "SystemExit after a wrong print", "print('no')\nraise SystemExit(0)"),
    _script(4, "quit", "quit()"),
    _script(4, "exit", "exit()"),
    _call(4, "exit", "def f(): exit()", RE),
    *(_script(17, f"os._exit({n})", f"import os\nos._exit({n})", RE) for n in (96, 97, 98, 124, 130, 137, 255)),
    *(_call(17, f"os._exit({n})", f"import os\ndef f(): os._exit({n})", RE) for n in (97, 137)),
    _script(18, "raises MemoryError", "raise MemoryError()", MLE | RE),
    _call(18, "raises MemoryError", "def f(): raise MemoryError('x')", MLE | RE),
    _call(18, "SIGSYS to itself", "import os, signal\ndef f(): os.kill(os.getpid(), signal.SIGSYS)", SV),
    _script(19, "atexit", "import atexit\natexit.register(print, 'k')\nprint('o', end='')", AC, "ok"),
    _script(19, "finaliser", "class A:\n  def __del__(self): print('k')\na = A()\nprint('o', end='')", AC, "ok"),
    _script(19, "weakref.finalize", "import weakref\nclass A: pass\na = A()\nweakref.finalize(a, print, 'k')\nprint('o', end='')", AC, "ok"),
    _script(19, "noise after a right answer", "import atexit\natexit.register(print, 'more')\nprint('ok')", WA, "ok"),
    _script(
        19, "threading.excepthook",
        "import threading\nthreading.excepthook = lambda a: print('k')\nprint('o', end='')\n"
        "t = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()", AC, "ok",
    ),
    _call(19, "atexit writes a record", "import atexit, os\natexit.register(os.write, 3, b'\"ok\"')\ndef f(): return 'no'", WA, "ok"),
    _script(20, "thread prints later", "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.05), print('ok'))).start()", AC, "ok"),
    _script(20, "thread without an end", "import threading, time\nthreading.Thread(target=time.sleep, args=(1e9,)).start()\nprint('ok')", TLE, "ok", limits=SLEEPER),
]  # fmt: skip

LIARS = [
    _call(5, "always equal", "class E:\n  __eq__ = lambda s, o: True\n  __ne__ = lambda s, o: False\n  __hash__ = lambda s: 0\ndef f(): return E()", RE),
    _call(5, "always equal inside a list", "class E:\n  __eq__ = lambda s, o: True\n  __hash__ = lambda s: 0\ndef f(): return [E()]", RE, ["ok"]),
    _call(5, "lying metaclass", "class M(type):\n  __mro__ = (str, object)\n  def mro(c): return [c, object]\nclass A(metaclass=M): pass\ndef f(): return A()", RE),
    _call(5, "lying class", "class A:\n  __class__ = str\n  __str__ = lambda s: 'ok'\ndef f(): return A()", RE, "ok"),
    _call(
        6, "lying str",
        "class S(str):\n  __eq__ = lambda s, o: True\n  __ne__ = lambda s, o: False\n  __hash__ = str.__hash__\n"
        "  def __str__(s): return 'ok'\n  __repr__ = __format__ = __str__\n  encode = lambda s, *a: b'\"ok\"'\ndef f(): return S('no')", WA, "ok",
    ),
    _call(
        6, "lying list",
        "class L(list):\n  __eq__ = lambda s, o: True\n  __iter__ = lambda s: iter('ok')\n  __len__ = lambda s: 2\n"
        "  __getitem__ = lambda s, i: 'ok'[i]\n  __class__ = str\ndef f(): return L([1])", WA, ["o", "k"],
    ),
    _call(6, "lying dict", "class D(dict):\n  __eq__ = lambda s, o: True\n  items = lambda s: [('o', 'k')]\n  __iter__ = lambda s: iter('o')\ndef f(): return D(a=1)", WA, {"o": "k"}),
    _call(6, "lying int", "class I(int):\n  __eq__ = lambda s, o: True\n  __hash__ = lambda s: 7\n  __repr__ = __str__ = lambda s: '7'\n  __index__ = __int__ = lambda s: 7\ndef f(): return I(6)", WA, 7),
    _call(6, "lying float", "class F(float):\n  __eq__ = lambda s, o: True\n  __repr__ = __str__ = lambda s: '7.5'\n  __float__ = lambda s: 7.5\ndef f(): return F(6.5)", WA, 7.5),
    _call(6, "bool for an int", "def f(): return True", WA, 1),
    _call(7, "liar for isclose, judged as close,", "class E:\n  __sub__ = __rsub__ = __abs__ = __float__ = __round__ = __le__ = __lt__ = lambda *a: 0.0\ndef f(): return E()", RE, 1.5, comparator=CloseValue()),
    _call(7, "liar for isclose", "class E:\n  __sub__ = __rsub__ = __abs__ = __float__ = __round__ = lambda *a: 0.0\ndef f(): return E()", RE),
    _call(7, "float liar for isclose", "class F(float):\n  __sub__ = __rsub__ = __abs__ = lambda *a: 0.0\ndef f(): return F(9)", WA, 1.5, comparator=CloseValue()),
    _call(7, "nan is close to nothing", "def f(): return float('nan')", WA, 1.5, comparator=CloseValue()),
]  # fmt: skip

PATCHES = [
    _call(
        8, "patched builtins",
        "import builtins, math, operator\n"
        "for n in ('isinstance', 'all', 'any', 'len', 'abs', 'sorted', 'print', 'type', 'str'): setattr(builtins, n, lambda *a, **k: True)\n"
        "builtins.AssertionError = Exception\nmath.isclose = operator.eq = lambda *a, **k: True\ndef f(): return 'no'", WA | RE,
    ),
    _script(8, "patched print", "import builtins, sys\nbuiltins.print = lambda *a, **k: None\nsys.stdout.write('no')"),
    _call(9, "patched json", "import json\njson.dumps = lambda *a, **k: '\"ok\"'\njson.JSONEncoder.encode = lambda *a: '\"maybe\"'\njson.encoder.c_make_encoder = None\ndef f(): return 'no'", WA | RE),
    _call(9, "patched math.isclose", "import math\nmath.isclose = lambda *a, **k: True\ndef f(): return 9.0", WA, 1.5, comparator=CloseValue()),
    _call(9, "patched unittest", "import unittest, unittest.case\nfor n in dir(unittest.TestCase):\n  if n.startswith('assert'): setattr(unittest.TestCase, n, lambda *a, **k: None)\ndef f(): return 'no'", WA, needs_files=WA | RE),
    _call(
        10, "replaces the runner",
        "import __main__, sys\n__main__.check = __main__.candidate = lambda *a: True\n"
        "for m in list(sys.modules.values()):\n  for n in ('_run_for_value', '_leave', 'dumps', 'values_match', 'execute'):\n"
        "    if hasattr(m, n): setattr(m, n, lambda *a: '\"ok\"')\ndef f(): return 'no'", WA | RE,
    ),
    _call(
        10, "replaces the runner by its frames",
        "import sys\nframe = sys._getframe()\nwhile frame:\n  for n in ('_leave', '_report', '_entry_point', 'codec'):\n"
        "    if n in frame.f_globals: frame.f_globals[n] = lambda *a: None\n  frame = frame.f_back\ndef f(): return 'no'", WA | RE,
    ),
    _call(21, "tracing", "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\nsys.addaudithook(lambda *a: None)\ndef f(): return 'no'"),
    _call(21, "audit hook that exits", "import os, sys\ndef hook(event, args):\n  if event == 'os.truncate': os._exit(0)\nsys.addaudithook(hook)\ndef f(): return 'no'", WA | RE),
    _script(30, "patched clocks", "import time\ntime.time = time.perf_counter = time.process_time = time.monotonic = lambda: 0.0\nwhile True: pass", TLE, limits=SHORT),
]  # fmt: skip

SEARCHES = [
    _call(
        11, "frame walk",
        FIND + "import sys\ndef f(*a):\n  texts = []\n  frame = sys._getframe(1)\n  while frame:\n"
        "    texts += [repr(v) for v in (*frame.f_locals.values(), *frame.f_globals.values())]\n    frame = frame.f_back\n  return found(' '.join(texts))",
    ),
    _call(12, "collector scan", FIND + "import gc\ndef f(*a): return found(' '.join(repr(o) for o in gc.get_objects() if type(o) in (list, tuple, dict)))"),
    _call(12, "referrers", FIND + "import gc\ndef f(*a): return found(' '.join(repr(r) for o in (a, f, globals()) for r in gc.get_referrers(o)))"),
    _call(14, "heap scan", FIND + "import ctypes\ndef f(*a):\n  pools = {id(o) >> 14 for o in (*a, a, [], {}, object(), 'x' * 50, b'y' * 50)}\n  return found(' '.join(ctypes.string_at(n << 14, 1 << 14).decode('latin-1') for n in pools))", WA | RE),
    _call(14, "memory file scan", FIND + "def f(*a):\n  texts = []\n  memory = open('/proc/self/mem', 'rb', 0)\n  for line in open('/proc/self/maps'):\n    begin, end = (int(x, 16) for x in line.split()[0].split('-'))\n    if ' rw' in line:\n      memory.seek(begin)\n      texts.append(memory.read(end - begin).decode('latin-1'))\n  return found(' '.join(texts))", RE),
]  # fmt: skip
"""Each of these finds the expected value where it is: given it as an argument, it returns it."""

PLANTED = [
    _call(13, "inspect.stack", FIND + "import inspect\ndef f(): return found(' '.join(str(i.code_context) + repr(i.frame.f_locals) for i in inspect.stack()))"),
    _call(13, "linecache", FIND + "import linecache, sys\ndef f():\n  texts, frame = [], sys._getframe()\n  while frame:\n    texts += linecache.getlines(frame.f_code.co_filename)\n    frame = frame.f_back\n  return found(' '.join(texts))"),
    _call(13, "loader", FIND + "import sys\ndef f():\n  texts = []\n  for m in list(sys.modules.values()):\n    try: texts.append(m.__loader__.get_source(m.__name__) or '')\n    except Exception: pass\n  return found(' '.join(texts))", WA | TLE | RE),
    *(
        _script(15, f"record {text!r} to every descriptor", f"import os\nfor fd in range(3, 1024):\n  try: os.write(fd, {text!r}); print('wrote')\n  except OSError: pass\nprint('ok')", AC, "ok")
        for text in (b"BR", b"C", b"E", b'{"verdict": "accepted"}')
    ),
    _call(15, "records to every descriptor", "import os\ndef f():\n  for fd in range(3, 1024):\n    for text in (b'BR', b'{\"verdict\": \"accepted\"}', b'C', b'E'):\n      try: os.write(fd, text)\n      except OSError: pass\n  os._exit(0)", RE),
    *(
        _script(16, f"stage bytes {text!r}", f"import os\nfor fd in (1, 2):\n  os.write(fd, {text.encode()!r})", WA, "ok")
        for text in ("B", "R", "C", "E", "BR", "accepted", '{"verdict": "accepted"}')
    ),
    _script(24, "echo of the sample", "print({'1': 'one'}.get(input(), 'no'))", stdin="2"),
    _script(25, "guessed test files", "import glob, os, sys\nfor p in [*sys.argv[1:], *glob.glob('*'), *glob.glob('/tmp/**', recursive=True)]:\n  print(open(p).read())", WA | RE),
    Attack(25, "planted test file", "print(open(HOST['folder'] + '/tests.json').read())", RE, expected=SECRET, outside=True, forging=True, naked=True),
    _call(26, "mutated argument", "def f(x):\n  x.append(1)", WA, [1], args=([],)),
    _call(26, "mutated argument returned", "def f(x):\n  x.clear()\n  return x", WA, [1], args=([1],)),
    _call(27, "generator", "def f(): yield 'ok'", RE, "ok"),
    _call(27, "coroutine", "async def f(): return 'ok'", RE, "ok"),
    _call(27, "recursive list", "def f():\n  x = []\n  x.append(x)\n  return x", RE),
    _call(27, "recursive dict", "def f():\n  x = {}\n  x[1] = x\n  return x", RE),
    _call(27, "too deep", "def f():\n  x = []\n  for _ in range(100000): x = [x]\n  return x", RE),
    _call(27, "wide by sharing", "def f():\n  x = [1]\n  for _ in range(40): x = [x, x]\n  return x", RE | MLE | TLE, limits=SHORT),
    _script(28, "all possible answers", "for word in ('yes', 'no', 'ok', 'YES', 'NO'): print(word)", WA, "ok"),
    *(
        _script(29, f"output {text!r}", f"import sys\nsys.stdout.write({text!r})", WA, "ok")
        for text in ("ok\0", "\ufeffok", "\x1b[2Kok", "o\bok", "ok\x1b]0;title\x07", "\u200bok", "ok no maybe")
    ),
    _script(29, "output that is not UTF-8", "import sys\nsys.stdout.buffer.write(b'ok\\xff')", WA, "ok"),
]  # fmt: skip

FORGING: Final = (*ENDS, *LIARS, *PATCHES, *SEARCHES, *PLANTED)
