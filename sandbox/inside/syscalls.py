"""System call numbers of the two supported machines.

`NUMBERS` is a table of `name:x86_64:aarch64`; a dash means that the machine has no such call.
"""

from __future__ import annotations

X86_64 = "x86_64"
AARCH64 = "aarch64"

# AUDIT_ARCH_* constants of the kernel, as a seccomp filter sees them.
AUDIT_ARCH = {X86_64: 0xC000003E, AARCH64: 0xC00000B7}

NUMBERS = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70
preadv2:327:286 pwritev2:328:287 lseek:8:62 close:3:57 close_range:436:436 fstat:5:80 dup:32:23 dup2:33:-
dup3:292:24 pipe:22:- pipe2:293:59 poll:7:- ppoll:271:73 select:23:- pselect6:270:72 epoll_create:213:-
epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284:-
eventfd2:290:19 signalfd:282:- signalfd4:289:74 timerfd_create:283:85 timerfd_settime:286:86
timerfd_gettime:287:87 sendfile:40:71 copy_file_range:326:285 fsync:74:82 fdatasync:75:83 ftruncate:77:46
getdents:78:- getdents64:217:61 getcwd:79:17 umask:95:166 uname:63:160 sysinfo:99:179 getpid:39:172
getppid:110:173 gettid:186:178 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177
getresuid:118:148 getresgid:120:150 getgroups:115:158 getpgrp:111:- getpgid:121:155 getsid:124:156
getrlimit:97:163 setrlimit:160:164 getrusage:98:165 times:100:153 sched_yield:24:124
sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120 sched_get_priority_max:146:125
sched_get_priority_min:147:126 getpriority:140:141 exit:60:93 exit_group:231:94 restart_syscall:219:128
rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigsuspend:130:133
rt_sigtimedwait:128:137 sigaltstack:131:132 set_tid_address:218:96 set_robust_list:273:99
get_robust_list:274:100 futex:202:98 futex_waitv:449:449 rseq:334:293 membarrier:324:283 mmap:9:222
munmap:11:215 mprotect:10:226 mremap:25:216 madvise:28:233 brk:12:214 msync:26:227 mincore:27:232
clock_gettime:228:113 clock_getres:229:114 clock_nanosleep:230:115 nanosleep:35:101 gettimeofday:96:169
time:201:- getitimer:36:102 setitimer:38:103 alarm:37:- pause:34:- timer_create:222:107
timer_settime:223:110 timer_gettime:224:108 timer_getoverrun:225:109 timer_delete:226:111 getrandom:318:278
wait4:61:260 waitid:247:95 recvfrom:45:207 shutdown:48:210 getsockname:51:204 getpeername:52:205
getsockopt:55:209 setsockopt:54:208 getcpu:309:168 fadvise64:221:223 readahead:187:213 open:2:-
openat:257:56 openat2:437:437 stat:4:- lstat:6:- newfstatat:262:79 statx:332:291 access:21:-
faccessat:269:48 faccessat2:439:439 readlink:89:- readlinkat:267:78 chdir:80:49 fchdir:81:50 statfs:137:43
fstatfs:138:44 socket:41:198 connect:42:203 bind:49:200 listen:50:201 accept:43:202 accept4:288:242
sendmsg:46:211 recvmsg:47:212 sendmmsg:307:269 recvmmsg:299:243 execve:59:221 execveat:322:281 fork:57:-
vfork:58:- memfd_create:319:279 memfd_secret:447:447 tkill:200:130 rt_sigqueueinfo:129:138
rt_tgsigqueueinfo:297:240 pidfd_open:434:434 pidfd_send_signal:424:424 setpgid:109:154 setsid:112:157
setpriority:141:140 sched_setaffinity:203:122 sched_setscheduler:144:119 sched_setparam:142:118
sched_setattr:314:274 ioprio_set:251:30 mlock:149:228 mlockall:151:230 mlock2:325:284 munlock:150:229
shmget:29:194 shmat:30:196 shmctl:31:195 shmdt:67:197 semget:64:190 semop:65:193 semctl:66:191
semtimedop:220:192 msgget:68:186 msgsnd:69:189 msgrcv:70:188 msgctl:71:187 mq_open:240:180 mq_unlink:241:181
inotify_init:253:- inotify_init1:294:26 inotify_add_watch:254:27 fanotify_init:300:262 flock:73:32
mkdir:83:- mkdirat:258:34 rmdir:84:- unlink:87:- unlinkat:263:35 rename:82:- renameat:264:38
renameat2:316:276 link:86:- linkat:265:37 symlink:88:- symlinkat:266:36 mknod:133:- mknodat:259:33
creat:85:- truncate:76:45 chmod:90:- fchmod:91:52 fchmodat:268:53 fchmodat2:452:452 chown:92:- fchown:93:55
lchown:94:- fchownat:260:54 utime:132:- utimes:235:- utimensat:280:88 futimesat:261:- setxattr:188:5
lsetxattr:189:6 fsetxattr:190:7 removexattr:197:14 lremovexattr:198:15 fremovexattr:199:16 fallocate:285:47
seccomp:317:277 splice:275:76 tee:276:77 vmsplice:278:75 sync:162:81 syncfs:306:267 acct:163:89
quotactl:179:60 landlock_create_ruleset:444:444 landlock_add_rule:445:445 landlock_restrict_self:446:446
process_madvise:440:440 name_to_handle_at:303:264 syslog:103:116 personality:135:92 ptrace:101:117
process_vm_readv:310:270 process_vm_writev:311:271 mount:165:40 umount2:166:39 pivot_root:155:41
chroot:161:51 fsopen:430:430 fsconfig:431:431 fsmount:432:432 fspick:433:433 open_tree:428:428
move_mount:429:429 mount_setattr:442:442 unshare:272:97 setns:308:268 bpf:321:280 io_uring_setup:425:425
io_uring_enter:426:426 io_uring_register:427:427 userfaultfd:323:282 perf_event_open:298:241 keyctl:250:219
add_key:248:217 request_key:249:218 kcmp:312:272 pidfd_getfd:438:438 init_module:175:105
finit_module:313:273 delete_module:176:106 kexec_load:246:104 kexec_file_load:320:294 reboot:169:142
swapon:167:224 swapoff:168:225 setuid:105:146 setgid:106:144 setreuid:113:145 setregid:114:143
setresuid:117:147 setresgid:119:149 setgroups:116:159 setfsuid:122:151 setfsgid:123:152 capset:126:91
open_by_handle_at:304:265 settimeofday:164:170 clock_settime:227:112 adjtimex:159:171 clock_adjtime:305:266
iopl:172:- ioperm:173:- modify_ldt:154:- sethostname:170:161 setdomainname:171:162 nfsservctl:180:42
clone:56:220 clone3:435:435 kill:62:129 tgkill:234:131 prctl:157:167 socketpair:53:199 sendto:44:206 ioctl:16:29
fcntl:72:25 prlimit64:302:261
"""


def numbers_of(machine: str) -> dict[str, int]:
    """The calls that `machine` has, by name. Raises KeyError for an unsupported machine."""
    column = {X86_64: 1, AARCH64: 2}[machine]
    table: dict[str, int] = {}
    for entry in NUMBERS.split():
        fields = entry.split(":")
        if fields[column] != "-":
            table[fields[0]] = int(fields[column])
    return table
