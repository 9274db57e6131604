/* An ordinary C program that knows nothing of DistOS: it reads the file that its argument names, twice, by different ways, lists the
 * directory, and tries what it may not. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv) {
    char all[4096], tail[3];
    struct stat known;
    if (argc < 2) return 2;
    FILE *file = fopen(argv[1], "r");
    if (!file) {
        printf("none: %s\n", strerror(errno));
        return 0;
    }
    size_t len = fread(all, 1, sizeof all, file);
    if (fstat(fileno(file), &known) != 0 || (size_t)known.st_size != len) puts("fstat");
    if (stat(argv[1], &known) != 0 || !S_ISREG(known.st_mode)) puts("stat");
    if (fseek(file, -2, SEEK_END) != 0 || fread(tail, 1, 3, file) != 2) puts("fseek");
    fclose(file);
    int fd = open(argv[1], O_RDONLY);
    char again[4096];
    if (read(fd, again, sizeof again) != (ssize_t)len || memcmp(all, again, len)) puts("read");
    if (pread(fd, again, 2, (off_t)len - 2) != 2 || memcmp(again, tail, 2)) puts("pread");
    close(fd);
    for (size_t i = 0; i < len; i++) all[i]++;
    printf("%.*s\n", (int)len, all);
    DIR *dir = opendir("/secrets");
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) printf("%s ", entry->d_name);
    if (dir) closedir(dir);
    puts("");
    if (open(argv[1], O_RDWR) >= 0 || open("/secrets/new", O_CREAT | O_WRONLY, 0600) >= 0 ||
        unlink(argv[1]) == 0 || open("/secrets/../etc/passwd", O_RDONLY) >= 0 ||
        open("/etc/passwd", O_RDONLY) >= 0 || mkdir("/secrets/d", 0700) == 0)
        puts("LEAK");
    return 0;
}
