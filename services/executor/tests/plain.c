/* An ordinary C program that knows nothing of DistOS: it counts words, and looks for what it
 * should not find. It prints its argument, the words, the bytes, whether there is an environment,
 * the time, and LEAK if a file of the machine can be opened. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

extern char **environ;

int main(int argc, char **argv) {
    size_t room = 1 << 20, len = 0, n, words = 0;
    int inside = 0;
    char *all = malloc(room);
    if (!all) return 2;
    while ((n = fread(all + len, 1, room - len, stdin)) > 0) len += n;
    for (size_t i = 0; i < len; i++) {
        int space = isspace((unsigned char)all[i]);
        if (!space && !inside) words++;
        inside = !space;
    }
    printf("%s %zu %zu %d %ld\n", argc > 1 ? argv[1] : "-", words, len,
           environ && environ[0], (long)time(NULL));
    if (fopen("/etc/passwd", "r") || fopen("a", "w")) puts("LEAK");
    return 0;
}
