/* How fast a small process starts programs: `spawner FLAGS AT_ONCE SECONDS FILE PROGRAM ARGUMENTS…` prints starts a second.
 * FLAGS are CLONE_NEW* in hexadecimal; with 0 it is posix_spawn, and each program has FILE open as number 9. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now_s(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static posix_spawn_file_actions_t actions;

static int start(unsigned long flags, char **argv) {
    static char *nothing[] = {NULL};
    pid_t pid;
    if (flags == 0) return posix_spawn(&pid, argv[0], &actions, NULL, argv, nothing);
    pid = (pid_t)syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
    if (pid == 0) {
        execve(argv[0], argv, nothing);
        _exit(127);
    }
    return pid < 0;
}

int main(int count, char **argv) {
    if (count < 6) return 2;
    unsigned long flags = strtoul(argv[1], NULL, 16);
    int at_once = atoi(argv[2]);
    double begin = now_s(), end = begin + atof(argv[3]);
    long started = 0;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 9, argv[4], O_RDONLY, 0);
    for (int running = 0; running > 0 || now_s() < end; running--) {
        while (running < at_once && now_s() < end) {
            if (start(flags, argv + 5)) return perror("start"), 1;
            running++, started++;
        }
        int status;
        if (wait(&status) < 0 || status != 0) return fprintf(stderr, "status %d\n", status), 1;
    }
    printf("%f\n", (double)started / (now_s() - begin));
    return 0;
}
