/*
 * Counts lines, words and bytes as `LC_ALL=C wc` of coreutils does, whole or in parts.
 *
 *   wordcount           stdin -> "lines words bytes"
 *   wordcount map       stdin, one part of a text -> one line of counts and of what its ends look like
 *   wordcount reduce    such lines, in the order of the parts -> "lines words bytes" of the whole
 *
 * An ordinary C program: stdin, stdout and its arguments are all it uses.
 *
 * In the C locale wc takes space, \t, \n, \v, \f and \r as separators, and counts a run of other
 * bytes as a word only if at least one of them is printable ASCII. A run that is cut by the
 * border of two parts may have its printable byte on either side, so a part tells for the run at
 * each of its ends whether that run counted as a word.
 */
#include <stdio.h>
#include <string.h>

struct counts {
    unsigned long long lines, words, bytes;
    int first;     /* the run at the start of the part counted as a word */
    int last;      /* the run at the end of the part counted as a word */
    int separated; /* there is a separator: `first` and `last` speak of different runs */
};

static int is_separator(unsigned char byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

static int is_printable(unsigned char byte) { return byte > ' ' && byte < 0x7f; }

/* Takes one more byte. `last` is at all times whether the present run is a word. */
static void take(struct counts *part, unsigned char byte) {
    part->bytes++;
    if (is_separator(byte)) {
        part->lines += byte == '\n';
        part->separated = 1;
        part->last = 0;
    } else if (is_printable(byte) && !part->last) {
        part->words++;
        part->last = 1;
        if (!part->separated)
            part->first = 1;
    }
}

/* Appends the part that follows: the runs at the border are one run. */
static void append(struct counts *whole, const struct counts *next) {
    whole->lines += next->lines;
    whole->words += next->words - (whole->last && next->first);
    whole->bytes += next->bytes;
    if (!whole->separated)
        whole->first = whole->first || next->first;
    whole->last = next->separated ? next->last : whole->last || next->first;
    whole->separated = whole->separated || next->separated;
}

static int count(struct counts *part) {
    static unsigned char buffer[65536];
    size_t got;
    while ((got = fread(buffer, 1, sizeof buffer, stdin)) > 0)
        for (size_t i = 0; i < got; i++)
            take(part, buffer[i]);
    return !ferror(stdin);
}

static int join(struct counts *whole) {
    struct counts next;
    int fields;
    while ((fields = scanf("%llu %llu %llu %d %d %d", &next.lines, &next.words, &next.bytes,
                           &next.first, &next.last, &next.separated)) == 6)
        append(whole, &next);
    return fields == EOF && !ferror(stdin);
}

int main(int argc, char **argv) {
    struct counts counts = {0};
    const char *mode = argc > 1 ? argv[1] : "";
    int reduce = strcmp(mode, "reduce") == 0;
    int map = strcmp(mode, "map") == 0;
    if (argc > 2 || (argc == 2 && !map && !reduce)) {
        fprintf(stderr, "usage: wordcount [map|reduce]\n");
        return 2;
    }
    if (!(reduce ? join(&counts) : count(&counts))) {
        fprintf(stderr, "wordcount: the input %s\n",
                reduce ? "is not a list of counts" : "cannot be read");
        return 1;
    }
    printf("%llu %llu %llu", counts.lines, counts.words, counts.bytes);
    if (map)
        printf(" %d %d %d", counts.first, counts.last, counts.separated);
    printf("\n");
    return fflush(stdout) == 0 && !ferror(stdout) ? 0 : 1;
}
