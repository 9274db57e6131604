// without PROTECTION PROGRAM ARGS…
//
// Runs a program on a machine that lacks one protection: the system calls by which a sandbox asks
// for it fail, for the program and everything that it starts. Root, or no_new_privs, is needed to
// install the filter; so "no_new_privs" itself can only be taken away by root. For "own uid" root
// loses the capability to change it, as it has in some containers.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IS(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), (yes), (no))
#define RETURN(value) BPF_STMT(BPF_RET | BPF_K, (value))
#define FAIL(error) RETURN(SECCOMP_RET_ERRNO | (error))
#define ALLOW RETURN(SECCOMP_RET_ALLOW)

// Fails `call`.
#define CALL(call, error) { LOAD(nr), IS((call), 0, 1), FAIL(error), ALLOW }
// Fails `prctl(request, …)`.
#define PRCTL(request) \
  { LOAD(nr), IS(SYS_prctl, 0, 3), LOAD(args[0]), IS((request), 0, 1), FAIL(EINVAL), ALLOW }

struct lack {
  const char *name;
  struct sock_filter code[8];
};

static struct lack lacks[] = {
  { "no_new_privs", PRCTL(PR_SET_NO_NEW_PRIVS) },
  { "landlock", CALL(SYS_landlock_create_ruleset, ENOSYS) },
  { "namespaces", CALL(SYS_unshare, EPERM) },
  { "capabilities", CALL(SYS_capset, EPERM) },
  { "no core dumps", PRCTL(PR_SET_DUMPABLE) },
  { "keys locked", CALL(SYS_mlock, EPERM) },
  // Only a call that sets a limit has a pointer to a new one.
  { "rlimits", { LOAD(nr), IS(SYS_prlimit64, 0, 4), LOAD(args[2]), IS(0, 0, 1), ALLOW,
                 FAIL(EPERM), ALLOW } },
  { "seccomp", CALL(SYS_seccomp, EINVAL) },
};

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: without PROTECTION PROGRAM ARGS...\n");
    return 2;
  }
  if (strcmp(argv[1], "own uid") == 0) {
    // Gone for good: a program that root starts gets what the bounding set leaves.
    if (prctl(PR_CAPBSET_DROP, CAP_SETUID, 0, 0, 0) != 0) {
      perror("without: CAP_SETUID");
      return 2;
    }
    execv(argv[2], argv + 2);
    perror(argv[2]);
    return 2;
  }
  for (size_t at = 0; at < sizeof lacks / sizeof *lacks; at++) {
    if (strcmp(lacks[at].name, argv[1]) != 0) continue;
    struct sock_filter *code = lacks[at].code;
    unsigned short length = 0;
    while (length < 8 && code[length].code != 0) length++;
    struct sock_fprog filter = { .len = length, .filter = code };
    if (geteuid() != 0) prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) != 0) {
      perror("without: seccomp");
      return 2;
    }
    execv(argv[2], argv + 2);
    perror(argv[2]);
    return 2;
  }
  fprintf(stderr, "without: no protection is called '%s'\n", argv[1]);
  return 2;
}
