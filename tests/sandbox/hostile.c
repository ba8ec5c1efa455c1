/* What a hostile job tries, each by its name: `hostile NAME…`. A line for each try: its name, and the errno that it
 * met, `0` where it went through, or what it saw. Built statically, so that nothing of the system's is in its way. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static void told(const char *name, long result) { printf("%s %d\n", name, result == -1 ? errno : 0); }
#define TRY(name, call) do { errno = 0; told(name, (long)(call)); } while (0)

static int write_to(const char *path, const char *content) {
    int fd = open(path, O_WRONLY);
    if (fd < 0) return -1;
    int result = write(fd, content, strlen(content)) < 0 ? -1 : 0, met = errno;
    close(fd);
    errno = met;
    return result;
}

static int open_close(const char *path, int flags) {
    int fd = open(path, flags);
    if (fd >= 0) close(fd);
    return fd < 0 ? -1 : 0;
}

/* Descriptors and directories that lead out. */
static void descriptors(void) {
    char path[64], target[4096];
    for (int fd = 0; fd < 1024; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(path, target, sizeof target - 1);
        if (length < 0) continue;
        target[length] = 0;
        struct stat there;
        if (fstat(fd, &there) == 0 && S_ISDIR(there.st_mode)) printf("directory %d %s\n", fd, target);
    }
    struct stat root, above;
    stat("/", &root);
    TRY("climb", chdir("/proc/self/cwd/../../../../../../.."));
    stat(".", &above);
    printf("above %s\n", root.st_ino == above.st_ino && root.st_dev == above.st_dev ? "root" : "elsewhere");
    stat("/proc/1/root", &above);
    TRY("root of the first", open_close("/proc/1/root", O_PATH));
    TRY("cwd of the first", open_close("/proc/1/cwd/..", O_PATH | O_DIRECTORY));
}

/* The programs of those that started it (CVE-2019-5736). */
static void programs(void) {
    TRY("write the first's program", open_close("/proc/1/exe", O_WRONLY));
    TRY("read the first's program", open_close("/proc/1/exe", O_RDONLY));
    int fd = open("/proc/self/exe", O_PATH);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    TRY("write the own program", open_close(path, O_WRONLY));
    TRY("write a shared program", open_close("/usr/bin/env", O_WRONLY));
    TRY("replace a shared program", rename("/work/hostile", "/usr/bin/env"));
}

/* Other processes: the first one of the job, and numbers that are the host's. */
static void others(void) {
    char data[16];
    struct { void *base; size_t length; } here = {data, sizeof data}, there = {(void *)0x400000, sizeof data};
    TRY("ptrace", syscall(SYS_ptrace, 16, 1, 0, 0));
    TRY("process_vm_readv", syscall(SYS_process_vm_readv, 1, &here, 1L, &there, 1L, 0L));
    TRY("process_vm_writev", syscall(SYS_process_vm_writev, 1, &here, 1L, &there, 1L, 0L));
    int pidfd = (int)syscall(SYS_pidfd_open, 1, 0);
    TRY("pidfd_getfd", syscall(SYS_pidfd_getfd, pidfd, 0, 0));
    TRY("memory", open_close("/proc/1/mem", O_RDWR));
    TRY("environ", open_close("/proc/1/environ", O_RDONLY));
    TRY("descriptors", open_close("/proc/1/fd", O_RDONLY | O_DIRECTORY));
    TRY("maps", open_close("/proc/1/maps", O_RDONLY));
    TRY("oom score", open_close("/proc/1/oom_score_adj", O_WRONLY));
    TRY("less likely killed", write_to("/proc/self/oom_score_adj", "-1000"));
    TRY("compare", syscall(SYS_kcmp, 1, getpid(), 0, 0, 0));
    TRY("advise", syscall(SYS_process_madvise, pidfd, &here, 1L, 21, 0));
    TRY("move pages", syscall(SYS_move_pages, 1, 0, NULL, NULL, NULL, 0));
    TRY("migrate pages", syscall(SYS_migrate_pages, 1, 0, NULL, NULL));
    int seen = 0;
    for (int pid = 3; pid < 70000; pid++)
        if (pid != getpid() && kill(pid, 0) == 0) seen++;
    printf("others %d\n", seen);
    TRY("limits of the first", syscall(SYS_prlimit64, 1, RLIMIT_NOFILE, &(struct rlimit){9, 9}, NULL));
}

/* New namespaces, and entering those that are there. */
static int nothing(void *unused) { (void)unused; return 0; }
static void namespaces(void) {
    static char stack[65536];
    const struct { const char *name; int flag; } kinds[] = {
        {"user", CLONE_NEWUSER}, {"mount", CLONE_NEWNS}, {"pid", CLONE_NEWPID}, {"net", CLONE_NEWNET},
        {"ipc", CLONE_NEWIPC}, {"uts", CLONE_NEWUTS}, {"cgroup", CLONE_NEWCGROUP}, {"time", 0x80},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char name[64];
        snprintf(name, sizeof name, "unshare %s", kinds[i].name);
        TRY(name, unshare(kinds[i].flag));
        if (kinds[i].flag == 0x80) continue; /* clone has no such flag: it is the signal's number there */
        snprintf(name, sizeof name, "clone %s", kinds[i].name);
        int pid;
        TRY(name, pid = clone(nothing, stack + sizeof stack, kinds[i].flag | SIGCHLD, NULL));
        if (pid > 0) waitpid(pid, NULL, 0);
    }
    uint64_t arguments[11] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
    TRY("clone3", syscall(SYS_clone3, arguments, sizeof arguments));
    int own = open("/proc/self/ns/mnt", O_RDONLY);
    TRY("setns by a file", setns(own, 0));
    int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    TRY("setns by a process", setns(pidfd, CLONE_NEWNS | CLONE_NEWPID));
    TRY("namespaces of the first", open_close("/proc/1/ns/mnt", O_RDONLY));
    TRY("more namespaces", open_close("/proc/sys/user/max_user_namespaces", O_WRONLY));
    TRY("map of uids", write_to("/proc/self/uid_map", "0 0 1"));
    TRY("map of gids", write_to("/proc/self/gid_map", "0 0 1"));
    TRY("map of projects", write_to("/proc/self/projid_map", "0 0 1"));
    TRY("groups after all", write_to("/proc/self/setgroups", "allow"));
    TRY("map of the first", open_close("/proc/1/uid_map", O_WRONLY));
}

/* Control groups, and who is called when one is empty. */
static void cgroups(void) {
    TRY("mount v2", mount("none", "/tmp", "cgroup2", 0, NULL));
    TRY("mount v1", mount("none", "/tmp", "cgroup", 0, "release_agent=/tmp/x"));
    TRY("a group", mkdir("/sys/fs/cgroup/mine", 0755));
    TRY("release_agent", open_close("/sys/fs/cgroup/release_agent", O_WRONLY));
    TRY("processes", open_close("/sys/fs/cgroup/cgroup.procs", O_WRONLY));
}

/* Rights that files give. */
static void rights(void) {
    TRY("setuid", chmod("/work/hostile", 06755));
    struct vfs_cap_data cap = {.magic_etc = 0x02000001, .data = {{0xFFFFFFFF, 0}, {0xFFFFFFFF, 0}}};
    TRY("file capabilities", setxattr("/work/hostile", "security.capability", &cap, sizeof cap, 0));
    TRY("trusted attribute", setxattr("/work/hostile", "trusted.x", "y", 1, 0));
    TRY("another owner", chown("/work/hostile", 0, 0));
    TRY("become root", setresuid(0, 0, 0));
    TRY("become another", setresuid(1001, 1001, 1001));
    TRY("other groups", syscall(SYS_setgroups, 1, &(gid_t){0}));
    TRY("keep capabilities", prctl(PR_SET_SECUREBITS, 0, 0, 0, 0));
    TRY("ambient", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN, 0, 0));
    TRY("new privileges again", prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
    TRY("no filter", prctl(PR_SET_SECCOMP, 0, 0, 0, 0));
    TRY("another program's name", prctl(PR_SET_MM, PR_SET_MM_EXE_FILE, 0, 0, 0));
    TRY("fixed addresses", syscall(SYS_personality, 0x0040000));
    TRY("readable is executable", syscall(SYS_personality, 0x0400000));
    TRY("segments", syscall(SYS_modify_ldt, 0, NULL, 0));
}

/* A filter of the job's own that asks a supervisor of the job's, who lets the call go on. */
static void *let_go_on(void *listener) {
    struct seccomp_notif asked;
    memset(&asked, 0, sizeof asked);
    ioctl((int)(intptr_t)listener, SECCOMP_IOCTL_NOTIF_RECV, &asked);
    struct seccomp_notif_resp answer = {.id = asked.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
    ioctl((int)(intptr_t)listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    return NULL;
}
static void filters(void) {
    struct sock_filter steps[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_unshare, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof steps / sizeof *steps, steps};
    long listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    TRY("a supervisor", listener);
    pthread_t thread;
    pthread_create(&thread, NULL, let_go_on, (void *)(intptr_t)listener);
    TRY("unshare all the same", unshare(CLONE_NEWUSER));
    TRY("what is allowed", getppid()); /* ends the thread */
    pthread_join(thread, NULL);
}

/* Devices, raw sockets, and families that know no network namespace. */
static void devices(void) {
    TRY("character device", mknod("/work/c", S_IFCHR | 0666, makedev(1, 1)));
    TRY("block device", mknod("/work/b", S_IFBLK | 0666, makedev(8, 0)));
    TRY("fifo", mknod("/work/f", S_IFIFO | 0600, 0));
    TRY("memory", open_close("/dev/mem", O_RDWR));
    TRY("kernel messages", open_close("/dev/kmsg", O_WRONLY));
    TRY("fuse", open_close("/dev/fuse", O_RDWR));
    TRY("tun", open_close("/dev/net/tun", O_RDWR));
    TRY("virtual machines", open_close("/dev/kvm", O_RDWR));
    TRY("terminal", open_close("/dev/tty", O_RDWR));
    TRY("packet socket", socket(AF_PACKET, SOCK_RAW, 0));
    TRY("raw socket", socket(AF_INET, SOCK_RAW, 1));
    TRY("terminals", open_close("/dev/ptmx", O_RDWR));
    TRY("terminals of its own", open_close("/dev/pts/ptmx", O_RDWR));
    TRY("routes", socket(AF_NETLINK, SOCK_RAW, 0));
    int others = 0;
    for (int protocol = 1; protocol < 32; protocol++) others += socket(AF_NETLINK, SOCK_RAW, protocol) >= 0;
    printf("other netlink %d\n", others);
    others = 0;
    for (int family = 0; family < 64; family++)
        for (int type = 1; type < 11; type++)
            if (family != AF_UNIX && family != AF_INET && family != AF_INET6 && family != AF_NETLINK)
                others += socket(family, type, 0) >= 0 || errno != EAFNOSUPPORT;
    printf("other families %d\n", others);
    others = 0;
    for (int family = AF_INET; family <= AF_INET6; family += AF_INET6 - AF_INET)
        for (int type = 4; type < 16; type++)
            others += socket(family, type, 0) >= 0 || (errno != ESOCKTNOSUPPORT && errno != ENETUNREACH);
    printf("other types %d\n", others);
    TRY("sctp", socket(AF_INET, SOCK_STREAM, 132));
    TRY("sctp by its type", socket(AF_INET6, SOCK_SEQPACKET, 0));
    TRY("dccp", socket(AF_INET, 6 | SOCK_CLOEXEC, 0));
    TRY("l2tp", socket(AF_INET, SOCK_DGRAM, 115));
    TRY("mptcp", socket(AF_INET, SOCK_STREAM, 262));
    int pair[2];
    struct msghdr message = {0};
    TRY("a pair of audit's", socketpair(AF_NETLINK, SOCK_RAW, 9, pair));
    TRY("a pair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    TRY("out of band", send(pair[0], "x", 1, MSG_OOB));
    TRY("out of band, as a message", sendmsg(pair[0], &message, MSG_OOB));
    int local = socket(AF_UNIX, SOCK_DGRAM, 0);
    static const int of_modules[] = {0x8940, 0x8941, 0x8980, 0x8981, 0x8982, 0x8983, 0x89a0, 0x89a1};
    others = 0;
    for (size_t i = 0; i < sizeof of_modules / sizeof *of_modules; i++)
        others += ioctl(local, of_modules[i], (long[4]){0}) != -1 || errno != EPERM;
    printf("bridges and virtual networks %d\n", others);
    for (int request = 0; request < 3; request++) {
        char name[32];
        snprintf(name, sizeof name, "terminal request %d", request);
        TRY(name, ioctl(0, (int[]){0x541C /* TIOCLINUX */, 0x541D /* TIOCCONS */, 0x5423 /* TIOCSETD */}[request], 0));
    }
}

/* Mounts: their masks, their flags, new ones. */
static void mounts(void) {
    TRY("unmask", umount("/proc/kcore"));
    TRY("remount", mount(NULL, "/usr", NULL, MS_REMOUNT | MS_BIND, NULL));
    TRY("shared", mount(NULL, "/", NULL, MS_SHARED | MS_REC, NULL));
    TRY("bind", mount("/proc", "/tmp", NULL, MS_BIND | MS_REC, NULL));
    TRY("proc", mount("proc", "/tmp", "proc", 0, NULL));
    TRY("tmpfs", mount("none", "/tmp", "tmpfs", 0, NULL));
    TRY("pivot_root", syscall(SYS_pivot_root, ".", "."));
    TRY("chroot", chroot("/tmp"));
    TRY("fsopen", syscall(430, "tmpfs", 0));
    TRY("open_tree", syscall(428, AT_FDCWD, "/", 1));
    TRY("fsconfig", syscall(431, -1, 6, NULL, NULL, 0));
    TRY("fsmount", syscall(432, -1, 0, 0));
    TRY("fspick", syscall(433, AT_FDCWD, "/usr", 0));
    TRY("move_mount", syscall(429, AT_FDCWD, "/tmp", AT_FDCWD, "/usr", 0));
    TRY("mount_setattr", syscall(442, AT_FDCWD, "/usr", 0, NULL, 0));
    TRY("open_tree_attr", syscall(467, AT_FDCWD, "/usr", 1, NULL, 0));
    TRY("statmount", syscall(457, NULL, NULL, 0, 0));
    TRY("listmount", syscall(458, NULL, NULL, 0, 0));
    static const char *const settings[] = {
        "kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "kernel/ns_last_pid", "vm/drop_caches",
        "vm/overcommit_memory", "fs/file-max", "fs/aio-max-nr", "net/ipv4/ip_forward", "net/ipv4/ping_group_range",
        "user/max_user_namespaces", "user/max_inotify_instances",
    };
    int written = 0;
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        char path[128];
        snprintf(path, sizeof path, "/proc/sys/%s", settings[i]);
        written += write_to(path, "1") == 0;
    }
    printf("settings %d\n", written);
    TRY("formats of programs", write_to("/proc/sys/fs/binfmt_misc/register", ":x:M::x::/work/hostile:"));
    TRY("write /usr", open_close("/usr/x", O_CREAT | O_WRONLY));
    TRY("write /etc", open_close("/etc/x", O_CREAT | O_WRONLY));
    TRY("write /proc/sys", open_close("/proc/sys/kernel/core_pattern", O_WRONLY));
    /* Covered by /dev/null where the kernel has it. */
    struct stat trigger;
    int is_there = stat("/proc/sysrq-trigger", &trigger) == 0;
    printf("sysrq %d\n", is_there && trigger.st_rdev != makedev(1, 3));
    char byte;
    int kcore = open("/proc/kcore", O_RDONLY);
    printf("kcore %zd\n", kcore < 0 ? 0 : read(kcore, &byte, 1));
}

/* What changes the machine. */
static void machine(void) {
    struct timeval now = {0, 0};
    TRY("clock", settimeofday(&now, NULL));
    TRY("clock_settime", clock_settime(CLOCK_REALTIME, &(struct timespec){0, 0}));
    TRY("adjtimex", syscall(SYS_adjtimex, NULL));
    TRY("hostname", sethostname("mine", 4));
    TRY("reboot", syscall(SYS_reboot, 0xfee1dead, 672274793, 0, NULL));
    TRY("kexec", syscall(SYS_kexec_load, 0, 0, NULL, 0));
    TRY("module", syscall(SYS_init_module, NULL, 0, ""));
    TRY("bpf", syscall(SYS_bpf, 0, NULL, 0));
    TRY("perf", syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0));
    TRY("userfaultfd", syscall(SYS_userfaultfd, 0));
    TRY("io_uring", syscall(SYS_io_uring_setup, 8, NULL));
    TRY("acct", syscall(SYS_acct, NULL));
    TRY("swap", syscall(SYS_swapon, "/work/x", 0));
    TRY("quota", syscall(SYS_quotactl, 0, NULL, 0, NULL));
    TRY("kernel log", syscall(SYS_syslog, 10, NULL, 0));
    TRY("ports", syscall(SYS_iopl, 3));
    TRY("keys", syscall(SYS_add_key, "user", "x", "y", 1L, -3));
    TRY("a session of keys", syscall(SYS_keyctl, 1, 0));
    TRY("handles", syscall(SYS_open_by_handle_at, AT_FDCWD, NULL, 0));
    TRY("secret memory", syscall(447, 0));
    TRY("everybody's files", (sync(), 0));
    TRY("the files of a file system", syncfs(-1)); /* nothing is looked at, so that it is no file's */
    unsigned long context = 0;
    TRY("asynchronous reads", syscall(SYS_io_setup, 60000, &context));
    TRY("huge pages", ({
        void *made = mmap(NULL, 2 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
        made == MAP_FAILED ? -1 : 0;
    }));
    TRY("huge pages of a file", memfd_create("x", MFD_HUGETLB));
    TRY("huge pages shared", shmget(IPC_PRIVATE, 2 << 20, SHM_HUGETLB | 0600));
}

/* Going before others. */
static void precedence(void) {
    TRY("nicer", setpriority(PRIO_PROCESS, 0, -20));
    TRY("real time", sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){50}));
    TRY("first at the disk", syscall(SYS_ioprio_set, 1, 0, (1 << 13) | 0));
    struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; }
        deadline = {.size = 48, .policy = 6, .runtime = 10000000, .deadline = 30000000, .period = 30000000},
        idle = {.size = 48, .policy = SCHED_IDLE};
    TRY("by a deadline", syscall(SYS_sched_setattr, 0, &deadline, 0));
    TRY("a core for itself", prctl(62, 1, 0, 0, 0));
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    struct sched_param none = {0};
    TRY("the first's niceness", setpriority(PRIO_PROCESS, 1, 19));
    TRY("the niceness of all", setpriority(PRIO_USER, 0, 19));
    TRY("the first's scheduler", sched_setscheduler(1, SCHED_IDLE, &none));
    TRY("the first's parameters", sched_setparam(1, &none));
    TRY("the first's attributes", syscall(SYS_sched_setattr, 1, &idle, 0));
    TRY("the first's processors", sched_setaffinity(1, sizeof one, &one));
    TRY("the first's disk", syscall(SYS_ioprio_set, 1, 1, 3 << 13));
    TRY("the disk of all", syscall(SYS_ioprio_set, 3, 1000, 3 << 13));
    TRY("its own niceness", setpriority(PRIO_PROCESS, getpid(), 19));
    TRY("its own processors", sched_setaffinity(getpid(), sizeof one, &one));
    TRY("locked memory", ({
        size_t size = 1 << 30;
        void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memory == MAP_FAILED ? -1 : mlock(memory, size);
    }));
    struct rlimit limit;
    getrlimit(RLIMIT_CORE, &limit);
    printf("core %ld %ld\n", (long)limit.rlim_cur, (long)limit.rlim_max);
    TRY("more processes", setrlimit(RLIMIT_NPROC, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY}));
    TRY("more files", setrlimit(RLIMIT_NOFILE, &(struct rlimit){1 << 20, 1 << 20}));
}

/* Using up what the kernel has for all. */
static void *stay(void *unused) { (void)unused; pause(); return NULL; }
static void exhaustion(void) {
    int count = 0;
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    while (count < 5000 && pthread_create(&thread, &attributes, stay, NULL) == 0) count++;
    printf("threads %s\n", count < 5000 ? "bounded" : "unbounded");
    for (count = 0; count < 100000 && open("/dev/null", O_RDONLY) >= 0; count++) {}
    printf("files %s %d\n", count < 100000 ? "bounded" : "unbounded", errno);
    for (int fd = 3; fd < 100000; fd++) close(fd);
    for (count = 0; count < 100000 && inotify_init() >= 0; count++) {}
    printf("inotify %s\n", count < 100000 ? "bounded" : "unbounded");
    for (int fd = 3; fd < 100000; fd++) close(fd);
    for (count = 0; count < 100000 && memfd_create("x", 0) >= 0; count++) {}
    printf("memfd %s\n", count < 100000 ? "bounded" : "unbounded");
    for (int fd = 3; fd < 100000; fd++) close(fd);
    for (count = 0; count < 100000 && shmget(IPC_PRIVATE, 4096, 0600) >= 0; count++) {}
    printf("shm %s\n", count < 100000 ? "bounded" : "unbounded");
    for (count = 0; count < 100000 && msgget(IPC_PRIVATE, 0600) >= 0; count++) {}
    printf("msg %s\n", count < 100000 ? "bounded" : "unbounded");
    for (count = 0; count < 100000 && semget(IPC_PRIVATE, 1, 0600) >= 0; count++) {}
    printf("sem %s\n", count < 100000 ? "bounded" : "unbounded");
    char name[64];
    for (count = 0; count < 2000000; count++) {
        snprintf(name, sizeof name, "/work/n%d", count);
        int fd = open(name, O_CREAT | O_WRONLY, 0600);
        if (fd < 0) break;
        close(fd);
    }
    printf("inodes %s %d\n", count < 2000000 ? "bounded" : "unbounded", errno);
    for (int i = 0; i < count; i++) {
        snprintf(name, sizeof name, "/work/n%d", i);
        unlink(name);
    }
    int fd = open("/work/sparse", O_CREAT | O_RDWR, 0600);
    TRY("a sparse file", ftruncate(fd, 1L << 40));
    static char block[1 << 16];
    memset(block, 1, sizeof block);
    for (count = 0; count < 1 << 20 && write(fd, block, sizeof block) > 0; count++) {}
    printf("tmpfs %s %d\n", count < 1 << 20 ? "bounded" : "unbounded", errno);
    fflush(stdout);
}

/* All that can be had of what the kernel counts by user, held until the end; and a little of it. */
static int queue(int number) {
    char name[32];
    snprintf(name, sizeof name, "/hostile-%d-%d", getpid(), number);
    return mq_open(name, O_CREAT | O_RDWR, 0600, NULL);
}
static int timer(void) {
    timer_t made;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    return timer_create(CLOCK_MONOTONIC, &event, &made);
}
static int locked(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? -1 : mlock(memory, size);
}
static void hoard(void) {
    int count;
    for (count = 0; count < 1000000 && inotify_init() >= 0; count++) {}
    printf("inotify %d\n", count);
    for (count = 0; count < 1000000 && queue(count) >= 0; count++) {}
    printf("queues %d\n", count);
    for (count = 0; count < 1000000 && timer() == 0; count++) {}
    printf("timers %d\n", count);
    for (count = 0; count < 1000000 && locked(65536) == 0; count++) {}
    printf("locked %d\n", count);
    printf("hoarded\n");
    fflush(stdout);
    pause();
}
static void modest(void) {
    TRY("inotify", inotify_init());
    TRY("queue", queue(0));
    char name[32];
    snprintf(name, sizeof name, "/hostile-%d-0", getpid());
    mq_unlink(name);
    TRY("timer", timer());
    TRY("locked memory", locked(65536));
}

/* A neighbour's things, left here to be found: `leave` waits for its end. */
static void leave(void) {
    int shm = shmget(0x4a6f6273, 4096, IPC_CREAT | 0666);
    int fd = open("/dev/shm/neighbour", O_CREAT | O_WRONLY, 0666);
    int tmp = open("/tmp/neighbour", O_CREAT | O_WRONLY, 0666);
    int abstract = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address = {AF_UNIX, "\0neighbour"};
    int bound = bind(abstract, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + 10);
    listen(abstract, 1);
    printf("left %d\n", shm >= 0 && fd >= 0 && tmp >= 0 && bound == 0);
    fflush(stdout);
    pause();
}
static void look(void) {
    TRY("shared memory", shmget(0x4a6f6273, 4096, 0));
    TRY("a name in /dev/shm", open_close("/dev/shm/neighbour", O_RDONLY));
    TRY("a name in /tmp", open_close("/tmp/neighbour", O_RDONLY));
    int abstract = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address = {AF_UNIX, "\0neighbour"};
    TRY("an abstract socket",
        connect(abstract, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + 10));
}

int main(int count, char **names) {
    const struct { const char *name; void (*tries)(void); } all[] = {
        {"descriptors", descriptors}, {"programs", programs}, {"others", others}, {"namespaces", namespaces},
        {"cgroups", cgroups}, {"rights", rights}, {"filters", filters}, {"devices", devices}, {"mounts", mounts}, {"machine", machine},
        {"precedence", precedence}, {"exhaustion", exhaustion}, {"hoard", hoard}, {"modest", modest}, {"leave", leave}, {"look", look},
    };
    for (int i = 1; i < count; i++)
        for (size_t j = 0; j < sizeof all / sizeof *all; j++)
            if (strcmp(names[i], all[j].name) == 0) all[j].tries();
    fflush(stdout);
    _exit(0);
}
