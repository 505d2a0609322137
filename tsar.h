/* tsar - Token-Shuffle AutoRegressive image generation: the reference in portable C99.
 *
 * This header is the whole interface: the command line (main.c) uses nothing else. It follows SPEC (tests/SPEC.md), the
 * specification, whose section numbers it cites. No function prints, exits, or keeps state between calls (but for the
 * names of files that are being written, see tsar_output_clean); every function that can fail returns a tsar_status and, in `err`, one
 * sentence that names the file, the value and the remedy.
 *
 * Letters used throughout (shapes are written [rows][columns], the last index runs fastest):
 *
 *     T   positions of a sequence (prefix and image tokens);     d   dim, width of the transformer
 *         vectors that a matrix multiplies, one for each         hd  head_dim = d / n_head
 *     P   positions of the prefix                                V   predicted vocabulary (codes or coarse labels)
 *     s   side of a Token-Shuffle window                         K   codebook_size
 *     n   fused tokens of an image = gh*gw / (s*s)               E   vq_embed_dim
 *     gh, gw   codes per column and per row                      C, H, W   channels, rows, columns of a picture
 *     N   codes of an image = gh*gw                              h, w      rows, columns of a latent picture
 *
 * Of the grid of fused tokens (7 and 9), which has no channels, R = gh/s are the rows and C = gw/s the columns; there W is ZipAR's window.
 *
 * The order of arithmetic (SPEC 1). Everything is double; weights are widened exactly. Every sum below has ONE
 * accumulator, starts from +0.0 (or the bias, where there is one), takes its terms in ascending index order, rounds
 * each product once and each sum once, and never fuses the two. "x / y" is one IEEE division; sqrt is correctly
 * rounded. Each function states what it computes as an expression: evaluate it literally, left to right, and the bits
 * are tsar's. */
#ifndef TSAR_H
#define TSAR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TSAR_VERSION "0.3.0"

#if defined(__FAST_MATH__)
#error "tsar: built with -ffast-math, which changes results; remove it (also -Ofast and -funsafe-math-optimizations)"
#endif

#if defined(__MINGW32__) && !defined(__clang__) /* its "printf" is that of an old library, which does not know %zu; it is not what runs */
#define TSAR_FORMAT(string, first) __attribute__((format(gnu_printf, string, first)))
#elif defined(__GNUC__)
#define TSAR_FORMAT(string, first) __attribute__((format(printf, string, first)))
#else
#define TSAR_FORMAT(string, first)
#endif
#if defined(__GNUC__)
#define TSAR_PREFETCH(address) __builtin_prefetch(address)
#define TSAR_PREFETCH_L2(address) __builtin_prefetch(address, 0, 2)
#define TSAR_INLINE static inline __attribute__((always_inline))
#define TSAR_APART static __attribute__((noinline)) /* a loop of numbers, which compilers make better code of when it stands alone */
#else
#define TSAR_PREFETCH(address) ((void)(address))
#define TSAR_PREFETCH_L2(address) ((void)(address))
#define TSAR_INLINE static inline
#define TSAR_APART static
#endif

/* TSAR_PARALLEL_FOR(threads) before a for loop: OpenMP when built with it, nothing otherwise. Iterations never share
 * an output, so the number of threads cannot change a bit. */
#define TSAR_PRAGMA(text) _Pragma(#text)
#ifdef _OPENMP
#define TSAR_PARALLEL_FOR(threads) TSAR_PRAGMA(omp parallel for num_threads((int)(threads)) schedule(static) if ((threads) > 1))
#else
#define TSAR_PARALLEL_FOR(threads) (void)(threads);
#endif

/* ---------------------------------------------------------------------------------------------- 1. errors and memory */

/* The values are the exit statuses of the command line (SPEC 9). */
typedef enum {
    TSAR_OK = 0,
    TSAR_DIFFERENT = 1, /* verify found a difference */
    TSAR_USAGE = 2,     /* a flag or an argument is wrong */
    TSAR_INPUT = 3,     /* a file or a value in it is missing or wrong */
    TSAR_ROOM = 4       /* out of memory or disk */
} tsar_status;

typedef struct {
    char text[512]; /* one sentence without a full stop or newline, all of it fit for a terminal; "" when there was no error */
} tsar_error;

/* Writes the sentence into err (which may be NULL; a longer sentence loses its middle) and returns status. */
tsar_status tsar_fail(tsar_error *err, tsar_status status, const char *format, ...) TSAR_FORMAT(3, 4);

/* The bytes of the character at `text`, which is not at its end: 1 for a byte that is no UTF-8, which counts as U+FFFD. *is_plain: a terminal
 * may be given it, because it moves no cursor and turns no line around. point may be NULL. */
size_t tsar_character(const char *text, uint32_t *point, int *is_plain);

/* `text`, cut to `size` bytes, as a terminal may be given it: what is not plain is '?'. Returns plain. */
const char *tsar_plain_text(char *plain, size_t size, const char *text);

/* count * size zeroed bytes, aligned to 64; NULL and TSAR_ROOM's sentence in err (naming `what`) when the product
 * overflows or memory is out. count * size = 0 gives a valid pointer. Released by tsar_free, which accepts NULL. */
void *tsar_alloc(size_t count, size_t size, const char *what, tsar_error *err);
void tsar_free(void *memory);

/* a * b, or SIZE_MAX, which tsar_alloc refuses for elements of any size, where that overflows. */
TSAR_INLINE size_t tsar_product(size_t a, size_t b) { return b != 0 && a > SIZE_MAX / b ? SIZE_MAX : a * b; }

/* ----------------------------------------------- 2. arithmetic (weights/numbers.c, weights/files/base.c; the self-check: tests/selfcheck.c) */

/* Proves at start-up that this build in this process keeps the contract of SPEC 1: no contraction, no excess precision or double rounding, no flush-to-zero,
 * round-to-nearest, no reassociation, known bits of tsar_exp, of a dot product through the kernel, of tsar_uniform. Costs microseconds. TSAR_INPUT and what is
 * broken in err otherwise. (Sets x87 and 68881 to 53-bit precision first, where that is the unit in use.) */
tsar_status tsar_self_check(tsar_error *err);

/* Elementary functions, within 1 ULP of the true value, the same bits on every machine: + - * / and bit operations. */
double tsar_exp(double x);               /* e^x; 0 below -745.2, +inf above 709.8, NaN for NaN */
double tsar_log(double x);               /* ln x; -inf for 0, NaN below 0 */
double tsar_sin(double x);               /* |x| <= 2^20 */
double tsar_cos(double x);               /* |x| <= 2^20 */
double tsar_erf(double x);               /* 2 / sqrt(pi) * integral of e^(-t^2) from 0 to x; NaN for NaN */
double tsar_pow(double base, double y);  /* e^(y ln base) for base > 0, with ln base to about 2^-100 */

/* In place over an array, n elements; the same bits as the scalar expressions, vectorised. */
void tsar_exp_n(double *x, size_t n);    /* x = exp(x) */
void tsar_silu_n(double *x, size_t n);   /* x = x / (1 + exp(-x)), SPEC 3 silu and SPEC 4 swish */
void tsar_gelu_n(double *x, size_t n);   /* tanh form: 0.5 x (1 + tanh z) = x / (1 + exp(-2z)), z = sqrt(2/pi) (x + 0.044715 x x x) */
void tsar_gelu_erf_n(double *x, size_t n); /* x = x (1 + erf(x * sqrt(1/2))) / 2, SPEC 3 gelu_erf */

/* Softmax of n scores in place, masked ones given as -INFINITY: m = max; e = exp(x - m) (exactly 0 where masked);
 * total = sum of e ascending; x = e / total. At least one score must be finite. */
void tsar_softmax(double *x, size_t n);
/* The same for each of `rows` rows of n scores, ld apart; many rows take less time than each alone. */
void tsar_softmax_rows(double *x, size_t ld, size_t n, size_t rows);

/* y = x / sqrt(mean(x^2) + eps) * g, mean(x^2) = (sum of x*x) / d; g NULL: no gain.        x, y, g [d]; y may be x. (LlamaGen) */
void tsar_rmsnorm(double *y, const double *x, const double *g, size_t d, double eps);

typedef enum {
    TSAR_F64, TSAR_F32, TSAR_F16, TSAR_BF16,
    TSAR_I64, TSAR_I32, TSAR_I16, TSAR_I8, TSAR_U64, TSAR_U32, TSAR_U16, TSAR_U8, TSAR_BOOL,
    TSAR_C64, TSAR_F8_E4M3, TSAR_F8_E5M2, /* those from TSAR_FOREIGN on are told by name and left out, never read as numbers */
    TSAR_DTYPES,
    TSAR_FOREIGN = TSAR_C64
} tsar_dtype;

size_t tsar_dtype_size(tsar_dtype dtype);       /* bytes of one element */
const char *tsar_dtype_name(tsar_dtype dtype);  /* "F64", ... as safetensors writes it */
int tsar_dtype_is_float(tsar_dtype dtype);      /* F64, F32, F16 or BF16 */

/* As text, which is returned: a shape, "[3, 64]", cut to `size` bytes; a number in the fewest of 15, 16 or 17 digits that read back as the same, text [32]. */
const char *tsar_shape_text(char *text, size_t size, size_t rank, const size_t *shape);
const char *tsar_real_text(char *text, double value);
/* A decimal number (sign, digits, '.', exponent), correctly rounded under any locale; beyond the doubles it is infinite or 0. 0: there is
 * none, or, if end is NULL, more than the number; else *end is behind it. */
int tsar_real_read(double *value, const char *text, const char **end);

/* Exact widening, and rounding to nearest even (subnormals and overflow to infinity included). */
double tsar_widen_f16(uint16_t bits);
double tsar_widen_bf16(uint16_t bits);
uint16_t tsar_round_f16(float x);
uint16_t tsar_round_bf16(float x);

/* A weight matrix [rows][cols] repacked for the kernel: panels of TSAR_PANEL rows, column-major inside a panel,
 * panels[rows/TSAR_PANEL][cols][TSAR_PANEL], the last panel filled up with zero rows; in the dtype of its file. F16 and
 * BF16 as 32-bit words [rows/TSAR_PANEL][(cols+1)/2][TSAR_PANEL] of two columns, the even one in the low half. */
#ifndef TSAR_PANEL
#define TSAR_PANEL 32
#endif
typedef struct {
    size_t rows, cols;
    tsar_dtype dtype; /* F64, F32, F16 or BF16 */
    void *panels;     /* owned; NULL for an absent matrix (rows = 0) */
} tsar_matrix;

tsar_status tsar_matrix_open(tsar_matrix *w, size_t rows, size_t cols, tsar_dtype dtype, const char *name, tsar_error *err);
void tsar_matrix_close(tsar_matrix *w);
TSAR_INLINE size_t tsar_panels(size_t rows) { return rows / TSAR_PANEL + (rows % TSAR_PANEL != 0); } /* panels of `rows` rows */
/* Packs rows first ... first+count-1 from values [count][cols] in w's dtype, native byte order. */
void tsar_matrix_set_rows(tsar_matrix *w, size_t first, size_t count, const void *values);
/* out[k][r] = w[r0+r][k0+k], widened, for r < rows and k < kn.   out [kn] rows ld apart */
void tsar_matrix_part(double *out, size_t ld, const tsar_matrix *w, size_t r0, size_t rows, size_t k0, size_t kn);

/* y[t][r] = bias[r] (0 without bias) + sum over k of w[r][k] * x[t][k].   x [T][cols], y [T][rows], bias [rows] or NULL
 * scratch: tsar_scratch(T, threads) doubles of the caller's, of any content; NULL: the same bits, more slowly where T > 4. */
void tsar_matmul(double *y, const double *x, const tsar_matrix *w, const double *bias, size_t T, size_t threads, double *scratch);
/* Doubles that tsar_matmul and tsar_accumulate (threads 1) want for T vectors: at most 33 kB for each thread. SIZE_MAX on overflow. */
size_t tsar_scratch(size_t T, size_t threads);

/* The kernel of it, for a dot product that may be taken in pieces without changing a bit: the piece from k0 = 0 on begins as tsar_matmul does,
 * a later one continues the sums that y holds; each adds sum over k0 <= k < k0+kn, ascending, of w[r][k] * x[t][k-k0], for t < T and
 * the rows of panels p0 <= p < p1. Single-threaded; scratch as above. y [T] rows ldy apart, written for real rows only; x [T] rows ldx apart. */
void tsar_accumulate(double *y, size_t ldy, const double *x, size_t ldx, const tsar_matrix *w, const double *bias,
                     size_t k0, size_t kn, size_t T, size_t p0, size_t p1, double *scratch);

/* A table of rows that are looked up, not multiplied: [rows][cols] in the dtype of its file. */
typedef struct {
    size_t rows, cols;
    tsar_dtype dtype;
    void *values; /* owned */
} tsar_table;

/* out[cols] = row `row` of the table, widened. row < rows. */
void tsar_table_row(double *out, const tsar_table *table, size_t row);

/* u in [0, 1): the counter-based generator of SPEC 1.5. */
enum { TSAR_DRAW = 0, TSAR_ACCEPT = 1, TSAR_REPLACE = 2, TSAR_FINE = 3, TSAR_KMEANS = 4 };
uint64_t tsar_mix(uint64_t z); /* the splitmix64 finaliser of SPEC 7 */
double tsar_uniform(uint64_t seed, uint64_t image, uint64_t row, uint64_t column, uint64_t slot, uint64_t purpose, uint64_t attempt);

/* --------------------------------------------------------------------------------------- 3. files (weights/files/safetensors.c) */

#define TSAR_MAX_RANK 8

/* One tensor of a safetensors file. */
typedef struct {
    const char *name; /* owned by the file */
    tsar_dtype dtype;
    size_t rank, shape[TSAR_MAX_RANK];
    uint64_t count;  /* elements */
    uint64_t offset; /* of its first byte in the file */
} tsar_tensor;

/* An open safetensors file, its header read and proven consistent: offsets in range, no overlap, no gap, size = shape x
 * dtype, no duplicate key. Not safe to read from two threads at once. Models that share a tokenizer need not each hold it:
 * the key vq_file names a file beside this one whose tensors vq.* and keys vq_* then appear as if they stood here (ours). */
typedef struct tsar_file tsar_file;

tsar_status tsar_file_open(tsar_file **file, const char *path, tsar_error *err);
tsar_status tsar_file_open_alone(tsar_file **file, const char *path, tsar_error *err); /* what is no model (a trace, codes): vq_file is followed nowhere */
void tsar_file_close(tsar_file *file);
const char *tsar_file_path(const tsar_file *file);
const char *tsar_file_lender(const tsar_file *file);                            /* path of the file that vq_file names; NULL: none */
size_t tsar_file_count(const tsar_file *file);
const tsar_tensor *tsar_file_at(const tsar_file *file, size_t index);           /* in the order of the data */
const tsar_tensor *tsar_file_find(const tsar_file *file, const char *name);     /* NULL if absent; logarithmic */
size_t tsar_file_meta_count(const tsar_file *file);
void tsar_file_meta_at(const tsar_file *file, size_t index, const char **key, const char **value);
const char *tsar_file_meta(const tsar_file *file, const char *key);             /* NULL if absent */
int tsar_is_utf8(const char *text);                                             /* what names, keys and values of a file are */

/* Elements first ... first+count-1, in the file's dtype and native byte order / widened exactly to double (any float
 * dtype, integers below 2^53) / as int64 (any integer dtype; a U64 above 2^63-1 is an error). */
tsar_status tsar_file_read(tsar_file *file, const tsar_tensor *tensor, uint64_t first, uint64_t count, void *out, tsar_error *err);
tsar_status tsar_file_read_f64(tsar_file *file, const tsar_tensor *tensor, uint64_t first, uint64_t count, double *out, tsar_error *err);
tsar_status tsar_file_read_i64(tsar_file *file, const tsar_tensor *tensor, uint64_t first, uint64_t count, int64_t *out, tsar_error *err);

/* A whole file, "-" is standard input, 0-terminated: *bytes [*size] is the caller's to tsar_free. `what` names it in errors. */
tsar_status tsar_read_whole(const char *path, const char *what, char **bytes, size_t *size, tsar_error *err);

/* Any output file: written beside its name, flushed to the disk and renamed over it by tsar_output_commit, so that a failure leaves the old
 * file as it was. The mode of an old file is kept, symbolic links are followed; what is a device, a FIFO, a socket or standard output is
 * written to directly. tsar_output_abandon removes what was written; after a failed write the output is still to be abandoned. */
typedef struct tsar_output tsar_output;
tsar_status tsar_output_open(tsar_output **output, const char *path, tsar_error *err);
/* TSAR_ROOM if the disk has no room for `bytes` bytes, as far as the system tells. */
tsar_status tsar_output_reserve(const tsar_output *output, uint64_t bytes, tsar_error *err);
tsar_status tsar_output_write(tsar_output *output, const void *bytes, size_t count, tsar_error *err);
tsar_status tsar_output_commit(tsar_output *output, tsar_error *err); /* releases it also when it fails */
void tsar_output_abandon(tsar_output *output);                        /* releases it; accepts NULL */

/* Before work whose result would be lost: whether a file of this name can be written now. */
tsar_status tsar_output_check(const char *path, tsar_error *err);

/* Which files a command reads and writes (weights/files/names.c), whatever they are called: by relative names, symbolic or hard links. Devices and
 * standard output are left out. */
typedef struct tsar_names tsar_names;
tsar_status tsar_names_open(tsar_names **names, tsar_error *err);
void tsar_names_close(tsar_names *names); /* accepts NULL */
/* A file that is read, or a folder, with every file that is in it now: a tsar_path_fn whose context is the names. */
typedef tsar_status (*tsar_path_fn)(void *context, const char *path, tsar_error *err);
tsar_status tsar_names_read(void *names, const char *path, tsar_error *err);
/* A file that is written: TSAR_USAGE if it is read, or written already. may_write asks without adding it. */
tsar_status tsar_names_write(tsar_names *names, const char *path, tsar_error *err);
tsar_status tsar_names_may_write(const tsar_names *names, const char *path, tsar_error *err);

/* For the caller's signal handlers (the library installs none): removes the temporary files of all outputs that are open, up to 16. Safe in a
 * handler, at any moment; what is left to do then is to end the process. */
void tsar_output_clean(void);

/* What else a program needs from the system (weights/files/system.c): bytes of the folder's part of a name, its last separator included
 * (also '\\' on Windows); whether a file can be read; seconds of a clock that is never set, and those that the process computed, all threads
 * together; how many of so many threads there can be now; whether a descriptor is a terminal; and, once at its start, descriptors 0 to 2 that
 * exist (a closed one reads and writes with an error), and arguments in UTF-8 on Windows, where main's are not. */
size_t tsar_path_folder(const char *path);
int tsar_path_is_readable(const char *path);
int tsar_path_is_file(const char *path); /* a regular one, not a folder, device or FIFO */
double tsar_seconds(void);
double tsar_processor_seconds(void);
size_t tsar_threads_possible(size_t threads);
int tsar_is_terminal(int descriptor);
void tsar_system_start(int *argc, char ***argv);

/* A safetensors writer: declare everything, then give the data in declared order, any number of elements at a time.
 * Deterministic: the metadata is sorted by key; tensors are laid out by descending element size, else as declared. */
typedef struct tsar_writer tsar_writer;
tsar_status tsar_writer_open(tsar_writer **writer, const char *path, tsar_error *err);
tsar_status tsar_writer_meta(tsar_writer *writer, const char *key, const char *value, tsar_error *err); /* a later value replaces */
tsar_status tsar_writer_declare(tsar_writer *writer, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, tsar_error *err);
/* After the last declaration: the tensors in the order in which their data must now come; NULL after the last. */
const tsar_tensor *tsar_writer_next(tsar_writer *writer);
/* The next `count` elements of the current tensor, native byte order. */
tsar_status tsar_writer_put(tsar_writer *writer, const void *values, uint64_t count, tsar_error *err);
/* All elements of the current tensor from `tensor` of another file, bits unchanged. */
tsar_status tsar_writer_copy(tsar_writer *writer, tsar_file *from, const tsar_tensor *tensor, tsar_error *err);
tsar_status tsar_writer_commit(tsar_writer *writer, tsar_error *err); /* releases it also when it fails */
void tsar_writer_abandon(tsar_writer *writer);                        /* accepts NULL */
/* n tensors (without data: left out) into a writer whose metadata is complete, which is committed, or abandoned on failure. */
typedef struct { const char *name; tsar_dtype dtype; size_t rank, shape[TSAR_MAX_RANK]; const void *data; } tsar_values;
tsar_status tsar_values_write(tsar_writer *writer, const tsar_values *values, size_t n, tsar_error *err);

/* ---------------------------------------------------------- 4. models (weights/config.c, weights/model.c, weights/synth.c) */

/* The parts of a model file, as bits; a tensor belongs to a part by the beginning of its name. */
enum {
    TSAR_PART_GPT = 1,   /* gpt.*: the autoregressive transformer; key arch */
    TSAR_PART_FINE = 2,  /* fine.*: CTF stage two; key fine_dim (ctf.cluster_of, the labels of codes, is small and belongs to all) */
    TSAR_PART_VQ = 4,    /* vq.*: the image tokenizer; key vq_ch */
    TSAR_PART_T5 = 8,    /* t5.*: the text encoder; key t5_dim */
    TSAR_PART_TEXT = 16, /* tokenizer.*, t5.spiece, known_words: from a sentence to ids and back */
    TSAR_PART_ALL = 31
};

/* How families of models differ: a row of the one table (weights/config.c), found by tsar_family_of. */
typedef enum { TSAR_NO_GPT, TSAR_TOKEN_SHUFFLE, TSAR_LLAMAGEN_C2I, TSAR_LLAMAGEN_T2I, TSAR_LUMINA_MGPT, TSAR_EMU3, TSAR_JANUS } tsar_arch;
enum { TSAR_ARCHS = TSAR_JANUS + 1 };

/* What stands in front of the image tokens. */
typedef enum {
    TSAR_PREFIX_NONE,
    TSAR_PREFIX_IDS,    /* rows of tok_embeddings: input.text */
    TSAR_PREFIX_CLASS,  /* a row of class_embeddings: input.class */
    TSAR_PREFIX_CAPTION /* cond_tokens features through cap_fc1 and cap_fc2: input.caption, input.caption_mask */
} tsar_prefix;

/* The prefix of the sequence that guidance subtracts (SPEC 3; QUIRKS, GPT 6). */
typedef enum {
    TSAR_UNCOND_NONE,
    TSAR_UNCOND_SYSTEM,   /* <bos> <soi> */
    TSAR_UNCOND_CLASS,    /* class num_classes */
    TSAR_UNCOND_FEATURES, /* the features of uncond_embedding, under the caption's mask */
    TSAR_UNCOND_LAST,     /* the last three ids of the prefix: boi and the two sizes */
    TSAR_UNCOND_PAD,      /* the prefix with `pad` for all ids but the first and the last */
    TSAR_UNCOND_NEGATIVE  /* a prefix of its own, around a negative prompt */
} tsar_uncond;

/* From a sentence to a prefix (SPEC 11): values of the key text_template. */
typedef enum { TSAR_TEMPLATE_NONE, TSAR_TEMPLATE_TSAR, TSAR_TEMPLATE_LUMINA, TSAR_TEMPLATE_EMU3, TSAR_TEMPLATE_JANUS, TSAR_TEMPLATE_JANUS_PRO } tsar_template;

/* How the scale of guidance grows over an image (SPEC 5). */
typedef enum { TSAR_CONSTANT, TSAR_LINEAR, TSAR_HALF_LINEAR, TSAR_COSINE } tsar_schedule;
enum { TSAR_SCHEDULES = TSAR_COSINE + 1 };

/* What may be combined with a family, as bits. */
enum {
    TSAR_TAKES_EOL = 1,     /* a token after every row */
    TSAR_TAKES_SHUFFLE = 2, /* windows of s x s codes */
    TSAR_TAKES_COARSE = 4,  /* n_coarse: labels instead of codes */
    TSAR_TAKES_QK_NORM = 8, /* norms of queries and keys */
    TSAR_TAKES_ROPE_2D = 16,
    TSAR_TAKES_AUTHORS = 32 /* zipar:W,authors */
};

typedef struct {
    const char *name;            /* value of the key arch; "" for a model without transformer */
    tsar_prefix prefix;
    tsar_uncond uncond;
    tsar_template text_template; /* unless the key text_template says otherwise */
    int shares_table;            /* codes are rows of tok_embeddings and output; 0: janus, whose codes have modules of their own */
    int rows_are_predictions;    /* gpt.norm and gpt.logits have the shape [n, s*s, ...]; 0: [T, ...], every position */
    unsigned takes;              /* TSAR_TAKES_* */
    double cfg;                  /* sampling defaults (SPEC 9); temperature 1 and top-p off for all */
    tsar_schedule cfg_schedule;
    size_t top_k;                /* 0: off */
    int64_t boi;                 /* the id that begins an image; -1: the key boi says it, where it is there */
} tsar_family;

extern const tsar_family tsar_families[TSAR_ARCHS]; /* by tsar_arch */

#define TSAR_MAX_LEVELS 16
#define TSAR_MAX_DIM ((size_t)1 << 24) /* upper bound of every count and size in a configuration but the vocabularies */

enum { TSAR_BOS = 0, TSAR_SOI = 1, TSAR_EOI = 2, TSAR_SPECIALS = 3 }; /* ids of Token-Shuffle's own vocabulary */

typedef enum { TSAR_SPLIT_NONE, TSAR_SPLIT_CHAMELEON, TSAR_SPLIT_CHAMELEON_SPLITS, TSAR_SPLIT_DEEPSEEK_LLM, TSAR_SPLIT_QWEN2 } tsar_split;

/* SPEC 2, the table of keys (tsar_keys). 0 stands for an absent key, -1 for an absent id. */
typedef struct {
    tsar_arch arch;
    size_t dim, n_layer, n_head, n_kv_head, ffn_hidden;
    double norm_eps, rope_base;
    int rope_2d;
    size_t text_vocab, vocab_size, codebook_size, grid_h, grid_w, n_coarse;
    size_t image_base;                              /* lumina-mgpt, emu3: the id of code 0 */
    size_t qk_norm;                                 /* rows of the norms of queries and keys; 0: none */
    int norm_post;                                  /* norm_order=post */
    size_t image_embed, image_head;                 /* janus */
    size_t shuffle, shuffle_blocks, shuffle_hidden; /* shuffle is 1 where there are no windows */
    size_t num_classes, cond_tokens, caption_dim;
    int no_null_class; /* null_class=0: class_embeddings has no row for "no class", and nothing guides */
    size_t vq_ch, vq_levels, vq_ch_mult[TSAR_MAX_LEVELS], vq_res_blocks, vq_z_channels, vq_embed_dim, vq_groups;
    int vq_l2_norm, vq_attn_mid, vq_pixels_down; /* vq_attn=mid; vq_pixels=down */
    size_t vq_temporal;                          /* Emu3: its factor in time; 0: no convolutions in time */
    size_t fine_dim, fine_n_layer, fine_n_head, fine_ffn_hidden;
    size_t t5_vocab, t5_dim, t5_n_layer, t5_n_head, t5_head_dim, t5_ffn_hidden, t5_buckets, t5_max_distance;
    double t5_norm_eps;
    int t5_clean;                                      /* t5_clean=llamagen */
    int text_split, text_normal_nfc, text_template;    /* a tsar_split; text_normal=nfc; a tsar_template */
    int64_t eol, bos, sep, boi, eoi, eof, eos, img, pad; /* ids; -1: none */
    int64_t size_base;                                 /* the id of size 0; -1: none */
    size_t size_unit;
    uint64_t seed;
    int has_gpt, has_vq, has_fine, has_t5; /* the parts that the keys describe: arch, vq_ch, fine_dim, t5_dim is present */
    size_t vocab;                          /* V = n_coarse if present, else codebook_size */
    size_t n_ids;                          /* ids of a prefix are below it: text_vocab or vocab_size; 0 where a prefix is not made of ids */
    size_t code_row;                       /* of tok_embeddings and gpt.output, where code 0 stands: text_vocab, image_base or 0 */
    size_t rows, columns, tokens;          /* of the grid of fused tokens: grid_h/s, grid_w/s, their product n */
    size_t vq_factor;                      /* pixels per code and side: 2^(vq_levels - 1) */
    struct { double cfg; int cfg_schedule; double temperature; size_t top_k; double top_p; } defaults; /* default_*, else the family's; a tsar_schedule */
} tsar_config;

TSAR_INLINE const tsar_family *tsar_family_of(const tsar_config *config) { return &tsar_families[config->arch]; }

/* One key of a configuration: the table of which reading, writing, import, clustering and info are loops. */
typedef enum {
    TSAR_KEY_SIZE,   /* size_t: a positive integer of at most `limit` */
    TSAR_KEY_COUNT,  /* size_t: the same, or 0 */
    TSAR_KEY_ID,     /* int64_t: 0 ... limit; absent: -1 */
    TSAR_KEY_SEED,   /* uint64_t: any */
    TSAR_KEY_REAL,   /* double: positive and finite */
    TSAR_KEY_SHARE,  /* double: 0 ... 1 */
    TSAR_KEY_CHOICE, /* int: which of the words `choices` */
    TSAR_KEY_ARCH,   /* tsar_arch: the name of a family */
    TSAR_KEY_LEVELS  /* vq_levels and vq_ch_mult: 1 to 16 positive integers, commas between them */
} tsar_key_kind;
typedef struct {
    const char *name;
    unsigned parts;       /* TSAR_PART_*: those in which it means anything */
    unsigned required;    /* those that cannot do without it */
    tsar_key_kind kind;
    size_t place;         /* offset in tsar_config */
    size_t limit;
    const char *choices;  /* of a choice: words with blanks between them, the first is 0 */
    const char *absent;   /* the value where the key is absent; NULL: 0 or -1, or what the family says */
    unsigned families;    /* bits 1 << tsar_arch of those that know the key; 0: all */
} tsar_key;

/* The table in the order in which keys are told, *n rows. */
const tsar_key *tsar_keys(size_t *n);
const tsar_key *tsar_key_find(const char *name); /* NULL: no key of a configuration */
/* The value of a key as metadata has it, in text [TSAR_KEY_TEXT]; returns 0 where the configuration has nothing to say about it: a part or
 * family that it does not describe, a choice or sampling default that an absent key means as well. */
#define TSAR_KEY_TEXT 384
int tsar_key_text(char *text, const tsar_config *config, const tsar_key *key);

/* A source of configuration strings: metadata of a file, or key=value arguments. Returns NULL for an absent key. */
typedef const char *(*tsar_lookup)(const void *source, const char *key);

/* "HxW" as a grid of h x w codes; TSAR_USAGE if it is none. */
tsar_status tsar_grid_parse(size_t grid[2], const char *text, tsar_error *err);
/* Gives the configuration another grid of h x w codes. Only positions that count on (rope=1d) have no grid built in: TSAR_USAGE for the others, for
 * stage two, and where windows do not fit. */
tsar_status tsar_config_grid(tsar_config *config, const size_t grid[2], tsar_error *err);

/* Reads and checks a configuration; `name` (a path) is named in errors. */
tsar_status tsar_config_read(tsar_config *config, tsar_lookup lookup, const void *source, const char *name, tsar_error *err);

/* A convolution: weight [out][in*taps*size*size], bias [out]; out = 0: absent. taps is the length of the kernel in time, the slowest axis behind `in`: 4 in the
 * encoder's time_conv, else 1 (of kernels of three taps, which in a picture meet data with the last one alone, only that one is in memory). size 1 or 3. */
typedef struct { tsar_matrix weight; double *bias; size_t in, out, size, taps; } tsar_conv;

/* A GroupNorm: [channels] each; in Emu3's decoder guided: y = groupnorm(x) * conv_y(guide) + conv_b(guide), both [channels][embed] of size 1; else absent. */
typedef struct { double *gain, *bias; size_t channels; tsar_conv conv_y, conv_b; } tsar_norm;

/* A batch norm in use: y = (x - mean) / sqrt(variance + 1e-5) * gain + bias, [channels] each (running_mean, running_var). */
typedef struct { double *gain, *bias, *mean, *variance; size_t channels; } tsar_batch_norm;

/* One block of the transformer (SPEC 3). */
typedef struct {
    double *attention_norm, *ffn_norm;           /* [d]: before the branch, or behind it where the stack is norm_post */
    double *q_norm, *q_norm_bias;                /* [qk_norm hd]: head h of n_head takes row h*qk_norm/n_head; NULL without qk_norm */
    double *k_norm, *k_norm_bias;                /* [qk_norm hd]: head h of n_kv_head takes row h*qk_norm/n_kv_head */
    tsar_matrix wqkv;                            /* [(n_head + 2 n_kv_head) hd][d] */
    tsar_matrix wo;                              /* [d][n_head hd] */
    tsar_matrix w1, w3, w2;                      /* [ffn][d], [ffn][d], [d][ffn] */
} tsar_layer;

/* A stack of blocks and its head: the autoregressive transformer, CTF's fine one, or the text encoder. */
typedef struct {
    size_t dim, n_layer, n_head, n_kv_head, head_dim, ffn_hidden;
    size_t inner;        /* n_head * head_dim: what attention mixes; dim but for t5 */
    double norm_eps, rope_base;
    int rope_2d;
    size_t qk_norm;      /* rows of the layers' q_norm and k_norm; 0: none */
    int norm_post;       /* x + norm(branch(x)) instead of x + branch(norm(x)) */
    tsar_layer *layers;  /* [n_layer] */
    double *norm;        /* [d] */
    tsar_matrix output;  /* gpt: [V][d], the codes' rows only (janus: none); fine: [K][d]; t5: none */
    tsar_table position_bias; /* t5: [buckets][n_head], added to the scores, without RoPE, mask and scale; else rows = 0 */
} tsar_stack;

/* norm, fc1, fc2 of a shuffle or unshuffle block. */
typedef struct { double *norm; tsar_matrix fc1, fc2; } tsar_mlp; /* [d], [hidden][d], [d][hidden] */

/* janus: y = fc2 . gelu_erf(fc1 . x + b1) + b2 */
typedef struct { tsar_matrix fc1, fc2; double *b1, *b2; } tsar_code_mlp;

/* The image tokenizer (SPEC 4); absent convolutions have out = 0. */
typedef struct { tsar_norm norm1, norm2; tsar_conv conv1, conv2, nin_shortcut; } tsar_resblock;
typedef struct { tsar_norm norm; tsar_conv q, k, v, proj_out; } tsar_attnblock;
typedef struct { tsar_batch_norm norm1, norm2; tsar_conv conv1, conv2; } tsar_time_block; /* time_res_stack.{j}: [z] channels, convolutions of size 3 */
typedef struct {
    size_t n_res, n_attn;
    tsar_resblock *res;   /* [n_res] */
    tsar_attnblock *attn; /* [n_attn]: n_res at the lowest resolution unless vq_attn=mid, else 0 */
    tsar_conv resample;   /* downsample.conv or upsample.conv; absent at the last level processed */
} tsar_level;
typedef struct {
    tsar_conv conv_in, conv_out;
    tsar_level *levels; /* [vq_levels], in the order of conv_blocks.{i} */
    tsar_resblock mid0, mid2;
    tsar_attnblock mid1;
    tsar_norm norm_out;
    size_t n_time_conv, n_time_res; /* log2(vq_temporal), vq_res_blocks; 0 without vq_temporal */
    tsar_conv *time_conv;           /* [n_time_conv]: encoder 4 taps, decoder the last of 3 */
    tsar_time_block *time_res;      /* [n_time_res] */
} tsar_coder;
typedef struct {
    tsar_coder encoder, decoder;
    tsar_conv quant_conv, post_quant_conv;
    tsar_table codebook; /* quantize.embedding.weight [K][embed] */
} tsar_vq;

/* Pieces of text that are found as a whole (SPEC 11): piece i is bytes at[i] ... at[i+1]-1 and has the id ids[i]. */
typedef struct { size_t n; uint8_t *bytes; int64_t *at, *ids; size_t n_bytes; } tsar_pieces; /* at [n + 1], ids [n], bytes [n_bytes] */
typedef struct { uint32_t *at; size_t mask; } tsar_hash; /* an index with open addressing */

/* A byte-pair tokenizer (SPEC 11): what a model file or a published file says, and the index that tsar_bpe_open makes of it. */
typedef struct {
    tsar_split split;
    int nfc;                          /* text_normal=nfc */
    int64_t *merges;                  /* [n_merges][2], owned like the following */
    size_t n_merges;
    int64_t *merge_ids, *merge_ranks; /* [n_merges] each; NULL: merge r makes id 3 + 256 + r and has rank r */
    int64_t *byte_ids;                /* [256], -1 for none; NULL: byte b is id 3 + b */
    tsar_pieces whole, special;       /* pieces that are found as a whole; added tokens */
    uint8_t *special_pass;            /* [special.n]: 0 before the normaliser, 1 after it */
    tsar_hash pairs, whole_hash, special_hash;
    unsigned char *lengths;           /* [longest + 1]: 1 for a length that added tokens have */
    size_t longest;
    unsigned char begins[256];        /* 1 for a byte that added tokens begin with */
} tsar_bpe;

/* Called in the thread that computes, after each layer of what feeds many rows at once: `what` is "prompt" (tsar_prefill), "transformer" (tsar_gpt_trace),
 * "stage two" (tsar_fine_hidden) or "text encoder" (tsar_t5_encode); and after each pass where codes are scored or verified: "codes". done goes up to 1. */
typedef void (*tsar_watch_fn)(void *context, const char *what, double done);

/* A model: configuration and read-only weights. Any number of threads may use one at the same time. */
typedef struct {
    tsar_config config;
    unsigned parts; /* TSAR_PART_*: those that are in memory; what others have is absent */
    size_t threads; /* threads that one call uses (1 without OpenMP) */
    tsar_watch_fn watch;  /* NULL, as it is opened; else the caller's, to show how far a long computation is; it changes no number */
    void *watch_context;
    tsar_dtype precision; /* F64: none; else each operation's result is rounded to it (tsar_round_to): for verify alone */
    tsar_stack gpt;
    tsar_table tok_embeddings;          /* [code_row + V][d], [vocab_size][d]; code c has row code_row + c (janus: none) */
    tsar_matrix compress, expand;       /* [d/s^2][d], [d][d/s^2]; absent for s = 1 */
    tsar_mlp *shuffle_mlp, *unshuffle_mlp; /* [shuffle_blocks]; NULL for s = 1 */
    tsar_table class_embeddings;        /* c2i: [num_classes + 1][d], [num_classes][d] with no_null_class */
    tsar_matrix cap_fc1, cap_fc2;       /* t2i: [d][caption_dim], [d][d] */
    tsar_table uncond_embedding;        /* t2i: [cond_tokens][caption_dim]; longer tables are cut */
    tsar_table image_embeddings;        /* janus: [V][image_embed], gpt.image_embed.tok_embeddings */
    tsar_code_mlp image_embed;          /* janus: [d][image_embed], [d][d]: a code's embedding into the stream */
    tsar_code_mlp image_head;           /* janus: [image_head][d], [V][image_head]: logits of the stream behind its last norm */
    tsar_stack fine;
    tsar_table coarse_embeddings;       /* [n_coarse][fine_dim] */
    int64_t *cluster_of;                /* [K]: the coarse label of each code; NULL without n_coarse */
    tsar_vq vq;
    tsar_stack t5;
    tsar_table t5_embeddings;           /* [t5_vocab][t5_dim] */
    uint8_t *t5_spiece;                 /* [n_t5_spiece]: the file spiece.model as it is; NULL without it */
    size_t n_t5_spiece;
    struct tsar_spiece *spiece;         /* read from it */
    tsar_bpe bpe;                       /* text to ids: tokenizer.*; tsar's own takes it without merges, too */
    char *known_words;                  /* the key known_words: all words of its training captions, blanks between them; NULL without it */
} tsar_model;

/* Nothing while model->precision is F64. Else x [n] becomes the nearest numbers of that precision, ties to even, each in one rounding:
 * what an implementation that computes in F32, F16 or BF16 cannot avoid (SPEC 10). */
void tsar_round_to(const tsar_model *model, double *x, size_t n);

/* What a tensor becomes in memory, and where: the one table of all weights. Loading, synthesis, import, counting and freeing are loops over it. */
typedef enum { TSAR_AS_MATRIX, TSAR_AS_TABLE, TSAR_AS_VECTOR, TSAR_AS_INTEGERS } tsar_use;
typedef struct {
    char name[128];
    unsigned part;          /* TSAR_PART_*; ctf.cluster_of: all */
    tsar_use use;
    size_t rank, shape[5];
    size_t first_row, rows; /* of shape[0]: the part that is kept in memory */
    int last_tap;           /* of shape[2], the kernel in time, only the last index is kept */
    void *home;             /* tsar_matrix *, tsar_table *, double ** or int64_t ** inside the model; NULL without one */
} tsar_weight;
typedef tsar_status (*tsar_weight_fn)(void *context, const tsar_weight *weight, tsar_error *err);

/* Calls visit for every weight that the configuration describes, in a fixed order. With a model (which
 * tsar_model_allocate has prepared) each weight names its home. Stops at the first failure. */
tsar_status tsar_weights(const tsar_config *config, tsar_model *model, tsar_weight_fn visit, void *context, tsar_error *err);

/* Prepares a zeroed model whose config is read for its weights: the sizes of the stacks, and the arrays of layers, blocks and levels in which tsar_weights
 * finds the homes; parts becomes all of the configuration's. tsar_model_close gives them back, with whatever stands in the homes; also after a failure. */
tsar_status tsar_model_allocate(tsar_model *model, tsar_error *err);

/* Opens a model file: every tensor that its configuration needs must be there, of its shape, in F64, F32, BF16 or F16. Of the `parts`
 * (TSAR_PART_*; TSAR_PART_ALL) that the file has the values are read, which must be finite; the others take neither time nor memory. */
tsar_status tsar_model_open(tsar_model **model, const char *path, unsigned parts, size_t threads, tsar_error *err);
void tsar_model_close(tsar_model *model);

/* What a file of inputs, of a trace or of codes (SPEC 8) needs of a model. */
typedef struct {
    unsigned parts; /* TSAR_PART_* that its inputs feed: all that a trace of it or its comparison needs in memory */
    size_t grid[2]; /* of its codes; 0: it has none, and the model's grid holds */
    int generates;  /* keys and values of a whole picture are needed, too; */
    double cfg;     /* above 1: also those of its unguided twin; below 0: what the model's own default says */
} tsar_needs;
tsar_status tsar_needs_of(tsar_needs *needs, const char *path, tsar_error *err);
/* Opens a model for them: with the file's grid where it has one that the model can take, else with `grid` (NULL: its own). What this machine has no
 * memory for, weights and what is generated together, is refused before a weight is read (TSAR_ROOM). */
tsar_status tsar_model_open_for(tsar_model **model, const char *path, const tsar_needs *needs, const size_t *grid, size_t threads, tsar_error *err);

/* TSAR_OK if the model has this part in memory; else TSAR_INPUT, and what the model therefore cannot do, in words such as "decode images". */
tsar_status tsar_model_needs(const tsar_model *model, unsigned part, const char *what, tsar_error *err);

/* Bytes of the keys and values of one sequence, `prefix` positions and a whole image: 2 n_layer n_kv_head hd doubles for each of
 * prefix + R (C + e) positions, e = 1 with eol. */
double tsar_sequence_bytes(const tsar_config *config, size_t prefix);
/* Bytes of memory that the file's weights of these parts take: the rows that are kept, in the dtype of the file. */
tsar_status tsar_weights_bytes(double *bytes, const tsar_config *config, const tsar_file *file, unsigned parts, tsar_error *err);
/* Bytes of the two tensors, of its widest level, that the image tokenizer's decoder takes for h x w codes; with vq_temporal also of its guide's products. */
double tsar_decoder_bytes(const tsar_config *config, size_t h, size_t w);
/* TSAR_OK if this machine has `bytes` of memory to give, or does not tell; else TSAR_ROOM: what needs them, what there is, what to take instead. */
tsar_status tsar_memory_check(double bytes, const char *what, const char *instead, tsar_error *err);

/* Synthetic weights (SPEC 7). */
uint64_t tsar_synth_key(const char *name, uint64_t seed);
uint64_t tsar_synth_word(uint64_t key, uint64_t index); /* z of flat index i */
/* Writes the synthetic model that keys[i]=values[i] describe, n of them; dtype F32, BF16 or F16. */
tsar_status tsar_synth(const char *path, const char *const *keys, const char *const *values, size_t n, tsar_dtype dtype, tsar_error *err);

/* ------------------------------------------------ 5. text (weights/text.c; weights/bpe.c, weights/tokenizer.c) */

/* Checks what stands in bpe (ids below n_ids, 0: below 2^24; `name` is named in errors) and indexes it. tsar_bpe_close releases everything. */
tsar_status tsar_bpe_open(tsar_bpe *bpe, size_t n_ids, const char *name, tsar_error *err);
void tsar_bpe_close(tsar_bpe *bpe);
/* From a published file: tokenizer.json, or tiktoken's ranks with emu3_vision_tokens.txt beside them. */
tsar_status tsar_bpe_read(tsar_bpe *bpe, const char *path, tsar_error *err);
/* The ids of a text alone: *ids [*n] is the caller's to tsar_free. Invalid UTF-8 is refused, but by tsar's own tokenizer. */
tsar_status tsar_bpe_encode(const tsar_bpe *bpe, const char *text, size_t bytes, int64_t **ids, size_t *n, tsar_error *err);
/* The bytes of ids, 0-terminated: *text [*bytes] is the caller's. tsar's own specials say nothing, added tokens their own text. */
tsar_status tsar_bpe_decode(const tsar_bpe *bpe, const int64_t *ids, size_t n, char **text, size_t *bytes, tsar_error *err);

/* SentencePiece unigram (SPEC 11; QUIRKS-t5): `file` is spiece.model as it is and outlives the tokenizer, `name` is named in errors. Ids
 * without the end; decode leaves out control pieces and the blank that normalising puts in front. */
typedef struct tsar_spiece tsar_spiece;
tsar_status tsar_spiece_open(tsar_spiece **spiece, const void *file, size_t bytes, const char *name, tsar_error *err);
void tsar_spiece_close(tsar_spiece *spiece); /* accepts NULL */
size_t tsar_spiece_count(const tsar_spiece *spiece); /* pieces: ids are below it */
tsar_status tsar_spiece_encode(const tsar_spiece *spiece, const char *text, size_t bytes, int64_t **ids, size_t *n, tsar_error *err);
tsar_status tsar_spiece_decode(const tsar_spiece *spiece, const int64_t *ids, size_t n, char **text, size_t *bytes, tsar_error *err);

/* LlamaGen's cleaning of captions (QUIRKS-t5): *clean [*n] is the caller's to tsar_free. Exact for printable ASCII without '<' and '&', also behind
 * a %XX; TSAR_INPUT, with the character, for other text. */
tsar_status tsar_caption_clean(const char *prompt, size_t bytes, char **clean, size_t *n, tsar_error *err);

/* A tokenizer that is a file of its own: tokenizer.json, tiktoken's ranks, or spiece.model. One of the two is there; tsar_tokenizer_close releases both. */
typedef struct { tsar_bpe bpe; tsar_spiece *spiece; char *file; } tsar_tokenizer;
tsar_status tsar_tokenizer_open(tsar_tokenizer *tokenizer, const char *path, tsar_error *err);
void tsar_tokenizer_close(tsar_tokenizer *tokenizer);

/* A sentence for a model, and what its template needs besides. */
typedef struct {
    const char *text;
    size_t bytes;
    int negative; /* emu3: the negative prompt, which takes no suffix */
    int raw;      /* emu3: no suffix either way */
    int ids_only; /* llamagen-t2i: the encoder is not run, the caption stays zero: a check before the work */
    size_t h, w;  /* rows and columns of codes; 0: the model's grid */
} tsar_sentence;
extern const char tsar_negative_prompt[]; /* emu3's published one */

/* The prefix of a sentence by the model's template (SPEC 11), or its ids for the model's T5 encoder: *ids [*n] is the caller's to tsar_free. TSAR_INPUT if the
 * model takes no text, has no tokenizer or lacks an id of its template, if its tokenizer cannot take the text, or the size is none of its sizes. */
tsar_status tsar_text_prefix(const tsar_model *model, const tsar_sentence *sentence, int64_t **ids, size_t *n, tsar_error *err);
/* The ids of a sentence for the T5 encoder of a model: cleaned where t5_clean says so and `raw` does not, cut to most - 1 pieces, then the end (1). */
tsar_status tsar_text_t5(const tsar_model *t5, const tsar_sentence *sentence, size_t most, int64_t **ids, size_t *n, tsar_error *err);
/* Of a text alone: no template, no cleaning, no end. */
tsar_status tsar_text_ids(const tsar_model *model, const char *text, size_t bytes, int64_t **ids, size_t *n, tsar_error *err);
/* The same of a 0-terminated prompt for the model's grid. */
tsar_status tsar_text_encode(const tsar_model *model, const char *prompt, int64_t **ids, size_t *n, tsar_error *err);
/* The next word of the prompt, from byte `from` on, that is none of the model's known_words and stands nowhere before in the prompt:
 * its place, and in *length its bytes. Words are what blanks divide; a capital letter or a comma makes another word. SIZE_MAX if
 * there is none, or if the model does not tell its words. */
size_t tsar_text_new_word(const tsar_model *model, const char *prompt, size_t from, size_t *length);
/* The bytes of ids, specials skipped, 0-terminated (tsar_free). */
tsar_status tsar_text_decode(const tsar_model *model, const int64_t *ids, size_t n, char **text, tsar_error *err);

/* ------------------------------------------------------------------------------------------------------ 6. intermediates */

/* Receives the intermediate tensors of a run by their names in SPEC 8, in the order of computation. data is double for F64, int64_t for I64, uint8_t for U8,
 * and lives during the call only. An F64 tensor that is no input may be overwritten in place: the run goes on with what then stands there. */
typedef struct {
    tsar_status (*put)(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err);
    void *context;
    int inside; /* 1: also the tensors inside of a block, .block.{i}.q, .k, .v, .attn, .h, .ffn */
} tsar_sink;

/* The same with a printf-formatted name; does nothing when sink is NULL. Shape is rank size_t values. */
tsar_status tsar_emit(const tsar_sink *sink, tsar_error *err, tsar_dtype dtype, void *data, size_t rank, const size_t *shape,
                      const char *format, ...) TSAR_FORMAT(7, 8);

/* ---------------------------------------------------------------------------------------------- 7. the transformer (tsar.c) */

/* What an image is conditioned on. The arrays belong to the caller. */
typedef struct {
    const int64_t *text; size_t n_text;     /* families of ids: the whole prefix, the last of which predicts the first code */
    size_t class_id;                        /* c2i */
    const double *caption, *caption_mask;   /* t2i: [cond_tokens][caption_dim], [cond_tokens] (1 = real) */
    int unconditional;                      /* the branch that guidance subtracts: QUIRKS, GPT 6; SPEC 3 */
    const int64_t *text_uncond; size_t n_text_uncond; /* its prefix, of any length; NULL: by the family's rule (tsar_uncond) */
} tsar_prompt;

/* Checks a prompt against a model: ids and class in range, an id that begins an image, finite features (weights/prompt.c). */
tsar_status tsar_prompt_check(const tsar_model *model, const tsar_prompt *prompt, tsar_error *err);
/* Positions that the prompt takes in front of the image tokens. */
size_t tsar_prompt_length(const tsar_model *model, const tsar_prompt *prompt);
/* The id at one of these places, for families of ids; of a prompt that passed the check. */
int64_t tsar_prompt_id(const tsar_model *model, const tsar_prompt *prompt, size_t place);
/* Positions behind the prefix: the fused tokens, and an eol after each row where there is one. */
TSAR_INLINE size_t tsar_image_positions(const tsar_config *c) { return c->tokens + (c->eol >= 0 ? c->rows : 0); }

/* What a row x [d] of the residual stream goes through; w . x is tsar_matmul, which starts from the bias where there is one.
 *     block       x = x + wo . mixed, then x = x + w2 . (silu(w1 . y) * (w3 . y)), y = rmsnorm(x); norm_post: x = x + rmsnorm(branch of x)
 *     q, k, v     wqkv . rmsnorm(x); in q and k, with qk_norm = g, each head h of H first becomes (a - mean) / sqrt(var + 1e-5) * weight + bias,
 *                 mean and var = sum((a - mean)^2) / hd in two ascending passes, of row h g / H; then each pair of neighbours
 *                 (a, b) becomes (a cos + b (-sin), b cos + a sin) of the angle coordinate * f[j], f[j] = tsar_pow(rope_base, -(2j) / width)
 *     coordinate  1d: pair j, position, width hd; 2d: width hd/2, the first half of the pairs takes the token's row, the second its column,
 *                 and cos = sin = 0 in the prefix; behind a prefix of ids P long row and column count from P, text has both of its position
 *     position    of token (r, c) P + r (C + e) + c, of the eol of row r P + r (C + e) + C; e = 1 with eol, else 0; C columns
 *     mixed       sum over positions j ascending of p_j v_j, p = softmax(score), score_j = (q . k_j) * (1 / sqrt(hd));
 *                 -INFINITY unless allowed(i, j) = (j <= i and j is fed and not padding) or i = j; CTF's stage two allows all
 *     caption     x = fc2 . gelu(fc1 . (feature * mask)), or the unconditional features as they are
 *     janus       x = fc2 . gelu_erf(fc1 . e + b1) + b2, e the code's row of image_embeddings; logits the same of rmsnorm(x) through image_head
 *     shuffle     z = concat(compress . e_c), then shuffle_blocks times z = z + fc2 . gelu(fc1 . rmsnorm(z))
 *     unshuffle   as often h = h + fc2 . gelu(fc1 . rmsnorm(h)), then logits_c = output . rmsnorm(expand . h_c)
 *     t5          the block with gelu for silu, without RoPE, mask and scale: score_j = q . k_j + bias of (bucket of j - i, head) */

/* KV cache and scratch of `sequences` sequences that are decoded side by side. */
typedef struct tsar_state tsar_state;
tsar_status tsar_state_open(tsar_state **state, const tsar_model *model, size_t sequences, tsar_error *err);
void tsar_state_close(tsar_state *state);

/* From now on, until its next prefill, every image place of the sequence counts in attention: one that was not fed yet with zero keys and
 * values, as in the cache of ZipAR's authors (QUIRKS-zipar-authors 4). */
void tsar_show_unfed(tsar_state *state, size_t sequence);

/* Starts sequence `sequence` anew with a prompt; logits [s*s][V] (NULL if not wanted) predict fused token 0. */
tsar_status tsar_prefill(tsar_state *state, size_t sequence, const tsar_prompt *prompt, double *logits, tsar_error *err);

/* One row of a pass: a fused token at its place in a sequence, or the eol behind the last token of a row. */
typedef struct {
    size_t sequence;
    size_t token;         /* raster index t of the place it is fed at (of the eol: of the row's last token); it predicts token t + 1, but where
                             an eol comes between */
    const int64_t *codes; /* [s*s] codes (or coarse labels), row-major in the window; NULL: the eol */
    int keep;             /* 0: a stand-in, whose keys and values are forgotten after the pass */
    double *logits;       /* [s*s][V] out, or NULL if not wanted */
} tsar_feed;

/* Feeds `rows` rows in one pass that reads the weights once. No two rows share sequence and place; a place that is fed again takes the new keys and values. */
tsar_status tsar_forward(tsar_state *state, const tsar_feed *feed, size_t rows, tsar_error *err);

/* A trace of the autoregressive transformer over prompt and all N codes [gh][gw] (coarse labels in a CTF model): gpt.* of SPEC 8. */
tsar_status tsar_gpt_trace(const tsar_model *model, const tsar_prompt *prompt, const int64_t *codes, const tsar_sink *sink, tsar_error *err);

/* CTF stage two: hidden [N][fine_dim] from labels [N]; fine.* into sink (NULL: none). */
tsar_status tsar_fine_hidden(const tsar_model *model, const int64_t *labels, double *hidden, const tsar_sink *sink, tsar_error *err);
/* logits [count][K] of codes first ... first+count-1, in raster order, from what tsar_fine_hidden gave. */
tsar_status tsar_fine_logits(const tsar_model *model, const double *hidden, size_t first, size_t count, double *logits, tsar_error *err);

/* The text encoder (SPEC 11): out [L][t5_dim] = the last norm's output for ids [L], eos last, no padding; t5.* into sink (NULL: none). */
tsar_status tsar_t5_encode(const tsar_model *model, const int64_t *ids, size_t L, double *out, const tsar_sink *sink, tsar_error *err);

/* What a sentence becomes for a model (weights/condition.c): a prefix, and the unconditional one where it is a sentence of its own; or the
 * ids of the text encoder and the caption that it makes of them. What is not there is NULL. */
typedef struct {
    int64_t *ids, *uncond;  /* [n_ids], [n_uncond] */
    size_t n_ids, n_uncond;
    double *caption, *mask; /* [cond_tokens][caption_dim], [cond_tokens] */
} tsar_condition;
/* t5: the model with the text encoder, NULL: the model itself. negative: emu3's negative prompt, NULL: the published one. */
tsar_status tsar_condition_open(tsar_condition *condition, const tsar_model *model, const tsar_model *t5, const tsar_sentence *sentence,
                                const char *negative, tsar_error *err);
/* Its ids as text, blanks between them: the caller's to tsar_free; NULL when memory is out. */
char *tsar_condition_text(const tsar_condition *condition, tsar_error *err);
void tsar_condition_close(tsar_condition *condition);

/* ------------------------------------------------------------------------------------------ 8. the image tokenizer (vq.c) */

/* What the tokenizer computes; n elements of a group, taken channel by channel, row by row.
 *     convolution   bias + sum over input channel, kernel row, kernel column of weight * input; zeros around the picture take part
 *                   (in time: over input channel, frame, kernel row, kernel column)
 *     GroupNorm     (x - mean) / spread * gain + bias, mean = sum(x) / n, spread = sqrt(sum((x - mean)^2) / n + 1e-6); a guided one
 *                   that * conv_y(guide) + conv_b(guide), both of the guide's pixel that covers x's
 *     batch norm    (x - mean) / sqrt(variance + 1e-5) * gain + bias
 *     swish         tsar_silu_n; attention as in the transformer, with 1 / sqrt(C) and no mask; a residual is x + (the branch)
 *     unit length   x / max(sqrt(sum of x*x), 1e-12), for latents and codewords where vq_l2_norm is set
 *     quantizer     the first code of the least (|z|^2 + |e|^2) - 2 z.e
 *     pixels        byte / 127.5 - 1 on the way in; floor(127.5 x + 128), clamped to 0 ... 255, on the way out; with vq_pixels=down
 *                   (x + 1) / 2 * 255 of x clamped to -1 ... 1, truncated */

/* rgb [H][W][3], H and W multiples of vq_factor; codes [H/factor][W/factor]. */
tsar_status tsar_vq_encode(const tsar_model *model, const uint8_t *rgb, size_t H, size_t W, int64_t *codes, const tsar_sink *sink, tsar_error *err);
/* codes [h][w]; rgb [h*factor][w*factor][3], or NULL when only the trace is wanted. */
tsar_status tsar_vq_decode(const tsar_model *model, const int64_t *codes, size_t h, size_t w, uint8_t *rgb, const tsar_sink *sink, tsar_error *err);
/* distances [n] = (|z|^2 + |e|^2) - 2 z.e of latent z [embed] to the codewords of codes [n], both as the quantizer takes
 * them: what decides between codes. latent is vq.latent's column for one position. */
tsar_status tsar_vq_distances(const tsar_model *model, const double *latent, const int64_t *codes, size_t n, double *distances, tsar_error *err);
/* The codeword `code` [embed] as the decoder takes it (normalised where the model says so). */
void tsar_vq_codeword(const tsar_model *model, size_t code, double *out);

/* k-means on the codewords (CTF, SPEC 6): cluster_of [K] with labels 0 ... k-1, none empty. k-means++ start and Lloyd
 * iterations until nothing changes or 100 rounds. */
tsar_status tsar_cluster(const tsar_model *model, size_t k, uint64_t seed, int64_t *cluster_of, tsar_error *err);

/* ----------------------------------------------------------------------------------------------- 9. the sampler (sampler.c) */

typedef enum { TSAR_RASTER, TSAR_ZIPAR, TSAR_ZIPAR_ADAPTIVE } tsar_order;

/* One decision (SPEC 5, 6): all that makes a code, and the code that the rule takes. The place is what the random numbers are counted by (SPEC 1.5). */
typedef struct {
    size_t image, token, row, column, slot; /* the image's counter; fused token in raster order, its row and column; the code's place in its window */
    size_t y, x;          /* of the code in the picture of codes [gh][gw] */
    size_t pass;          /* that decides it, from 0; stage two of CTF comes after the last */
    int purpose;          /* TSAR_DRAW: a code by its logits; TSAR_ACCEPT: the test of an adaptive candidate; TSAR_FINE: stage two of CTF */
    int settles;          /* 0: the code is a candidate, and is final only if no code of its token changes in a test; 1: it is final whatever it is */
    size_t attempt;       /* which test of the candidate, from 0 */
    double u, replace;    /* the random numbers: of the draw or the acceptance; of the replacement (TSAR_ACCEPT) */
    size_t V;             /* how many codes compete */
    const size_t *codes;  /* [V] ascending, which ones (TSAR_FINE: those of the label); NULL: 0 ... V-1 */
    const double *logits; /* [V] after guidance: uncond + (cond - uncond) * scale */
    double scale;         /* of guidance at this token; 0: there is none, and cond is logits, uncond NULL */
    const double *cond, *uncond; /* [V] before guidance */
    const double *p;      /* [V] what tsar_probabilities makes of them; NULL in greedy decoding */
    const double *before; /* TSAR_ACCEPT: [V] what p was when the candidate was drawn or last tested; else NULL (greedy: the logits then) */
    size_t candidate;     /* TSAR_ACCEPT: the code that is tested */
} tsar_decision;

/* Has the last word on a code: *code comes as the one that the rule takes (DRAW, FINE: tsar_draw by u; ACCEPT: tsar_adapt by u and replace; greedy:
 * tsar_argmax), and may be changed to any other of the vocabulary. Every code of a generation passes through it, images of a batch in turn, slots of a token
 * ascending, so that drawing, forcing the codes of a file and showing the choices are one path. Anything but TSAR_OK stops the generation with that status. */
typedef tsar_status (*tsar_decide_fn)(void *context, const tsar_decision *decision, size_t *code, tsar_error *err);

typedef struct {
    uint64_t seed;
    uint64_t first_image;   /* the counter of the first image of a call, with which its codes are drawn: 0, or where another call ended */
    double cfg;             /* target scale a; guidance runs only if a > 1 */
    tsar_schedule schedule;
    int64_t cfg_interval;   /* -1: always; else guidance covers tokens 0 ... cfg_interval + 1 (QUIRKS, GPT 7) */
    double temperature;     /* >= 0; below 1e-5 it counts as 1e-5 */
    size_t top_k;           /* 0: off */
    double top_p;           /* 0 <= p <= 1; 0: one code is kept; 1: off */
    int greedy;
    tsar_order order;
    size_t window;          /* of ZipAR; wider than the row is the row */
    int first_row;          /* ZipAR: row 1 waits for the whole of row 0 */
    int authors;            /* ZipAR as its authors' code for LlamaGen does it: first_row's schedule, and QUIRKS-zipar-authors 2, 3, 4, 9 */
    tsar_decide_fn decide;  /* NULL: the rule's codes stand */
    void *decide_context;
} tsar_settings;

/* The defaults of the model (SPEC 9), raster order, seed 0. */
tsar_settings tsar_settings_default(const tsar_model *model);
extern const char *const tsar_schedule_names[TSAR_SCHEDULES]; /* "constant", "linear", "half-linear", "cosine" */
/* A schedule by its name; "raster", "zipar:W[,first-row|,authors]", "zipar-adaptive:W". TSAR_USAGE for anything else. */
tsar_status tsar_order_parse(tsar_settings *settings, const char *text, tsar_error *err);
tsar_status tsar_schedule_parse(tsar_schedule *schedule, const char *text, tsar_error *err);
/* The decode order of the settings as tsar_order_parse reads it; text [64] is room for it. */
const char *tsar_order_text(char *text, const tsar_settings *settings);
/* What is wrong whatever the model, and which decode orders a model cannot have: TSAR_USAGE. */
tsar_status tsar_settings_check(const tsar_settings *settings, tsar_error *err);
tsar_status tsar_order_check(const tsar_settings *settings, const tsar_model *model, tsar_error *err);

/* SPEC 5, pure functions: logits [V] and a random number in, an index out. */

/* The scale of guidance at fused token t of n, from the target a; 0 where there is none:
 * constant a; linear 1 + (a - 1) * (t / (n - 1)); half-linear 1 + (a - 1) * min(1, (2 t) / n);
 * cosine 1 + (a - 1) * (1 - cos(pi * (t / (n - 1)))) / 2. t / (n - 1) counts as 1 for n = 1. */
double tsar_cfg_scale(const tsar_settings *settings, size_t t, size_t n);
void tsar_guide(double *logits, const double *uncond, size_t V, double scale);          /* logits = uncond + (logits - uncond) * scale */
/* logits to probabilities in place. scratch [V] of indices.
 * 1. x = x / max(temperature, 1e-5).  2. top-k: values below the k-th largest are removed.  3. top-p: in stable descending
 * order a value stays while the mass of those before it, mass = mass + exp(x - max) / total, does not exceed p; total = sum of
 * exp(x - max) by ascending index.  4. softmax of what is left; what was removed has probability 0. */
void tsar_probabilities(double *logits, size_t V, const tsar_settings *settings, size_t *scratch);
size_t tsar_draw(const double *weights, size_t V, double u); /* first index whose running sum exceeds u * total */
size_t tsar_argmax(const double *x, size_t V);               /* lowest index of the maximum */
/* zipar-adaptive's test of one code that was drawn from p [V]: `code` itself if accept * p[code] < q[code], else a draw by
 * `replace` from max(0, q - p); distributed as q, exactly. accept and replace are random numbers; residual [V] is scratch. */
size_t tsar_adapt(size_t code, const double *p, const double *q, double *residual, size_t V, double accept, double replace);

/* The decode order: which fused tokens are decoded in the next pass, given step_of [rows][columns] (-1: not yet).
 * Writes their raster indices to next, ascending; returns how many. Nothing else in the sampler knows about rows.
 * lag [rows] is the adaptive order's window of each row (SIZE_MAX: its first token is still a candidate; NULL for the others). */
size_t tsar_order_next(const tsar_settings *settings, size_t rows, size_t columns, const int64_t *step_of, const size_t *lag, size_t *next);
/* Passes that a whole image takes (a lower bound for the adaptive order). */
size_t tsar_order_passes(const tsar_settings *settings, size_t rows, size_t columns);

/* What a generation gives; arrays belong to the caller, NULL where not wanted except codes. I images, one after the other. */
typedef struct {
    int64_t *codes;    /* [I][gh][gw] */
    int64_t *coarse;   /* [I][gh][gw], CTF models */
    int64_t *step_of;  /* [I][rows][columns]: the pass that decoded each fused token, from 0 */
    double *logits;    /* [I][n][s*s][V]: each decision's logits after CFG */
    size_t *passes;    /* [I] */
} tsar_result;

/* Called after every pass: images first_image ... first_image+images-1 (their counters) are under way; codes [images][gh][gw] holds -1
 * where nothing is decoded (labels while a CTF model is in stage one). Returning anything but TSAR_OK stops the generation with that status. */
typedef struct {
    size_t first_image, images, pass, decoded, tokens; /* decoded of tokens (fused, per image, the slowest) */
    int fine;                                          /* stage two of CTF is done: codes are codes */
    const int64_t *codes;
} tsar_progress;
typedef tsar_status (*tsar_progress_fn)(void *context, const tsar_progress *progress, tsar_error *err);

/* How many of `images` images tsar_generate decodes side by side: whoever asks for as many at a time loses no speed. */
size_t tsar_batch(const tsar_model *model, const tsar_prompt *prompt, const tsar_settings *settings, size_t images);

/* Generates `images` images of one prompt, in batches of at most 4 whose keys and values fit into 1 GB (the batch never changes
 * a bit). Image i draws with image counter settings->first_image + i. */
tsar_status tsar_generate(const tsar_model *model, const tsar_prompt *prompt, const tsar_settings *settings, size_t images,
                          tsar_result *result, tsar_progress_fn progress, void *context, tsar_error *err);

/* A tsar_progress_fn whose context is the model: tells its watch after every pass. */
tsar_status tsar_watch_passes(void *model, const tsar_progress *now, tsar_error *err);

/* The log-likelihood of given codes [gh][gw] in nats: nats [gh][gw] = ln p(code), each given the ones that the decode order feeds before it, after
 * guidance (settings->cfg > 1), before temperature, top-k and top-p; in a CTF model ln p(label) + ln p(code | label). Their sum is the picture's.
 * TSAR_USAGE for the adaptive order; settings->decide is not called. */
tsar_status tsar_score(const tsar_model *model, const tsar_prompt *prompt, const tsar_settings *settings, const int64_t *codes, double *nats, tsar_error *err);

/* What a generation leaves behind (weights/record.c, SPEC 10 Decoding). The file of image `image` holds its condition (input.*), codes, coarse, step_of,
 * logits (those that result has), and as metadata `command` (NULL: none) and all that decides a code, by the names of the flags:
 * generate.image (settings->first_image + image), .seed, .cfg, .cfg-schedule, .cfg-interval, .temperature, .top-k, .top-p, .greedy (0 or 1), .decode. */
tsar_status tsar_record_write(const char *path, const tsar_model *model, const tsar_prompt *prompt, const tsar_settings *settings, const tsar_result *result,
                              size_t image, const char *command, tsar_error *err);
/* Reads that metadata back: each key that the file has replaces a setting or *image, the others stay as they are. TSAR_INPUT names the key that is wrong. */
tsar_status tsar_record_settings(tsar_settings *settings, uint64_t *image, const tsar_file *file, tsar_error *err);

/* The images of one prompt and their files (weights/job.c). Who prints, and whatever is shown on the way, is the caller's business:
 *     tsar_job_open, tsar_job_check; for each part of the images tsar_generate and, image by image, tsar_job_save; tsar_job_close. */
enum { TSAR_JOB_PICTURE, TSAR_JOB_CODES, TSAR_JOB_ORDER_MAP, TSAR_JOB_KINDS, TSAR_JOB_FLAGS = 12, TSAR_JOB_PATH = 4096 };
typedef struct {
    const tsar_model *model;
    const tsar_settings *settings;      /* first_image: of the part that is under way */
    const char *model_path;             /* as the user named it; NULL: the shipped model */
    const char *flags[TSAR_JOB_FLAGS];  /* what is drawn, in the order of the command: "prompt" with the prompt, "class", "grid" ... */
    const char *values[TSAR_JOB_FLAGS]; /* NULL: a switch */
    const char *ids;                    /* those that the prompt became, blanks between them; NULL: not told */
    size_t n_flags;
    size_t images;
    const char *files[TSAR_JOB_KINDS];  /* names to write, or of which FILE-I is made for image I of several; NULL: not wanted */
    const char *frames;                 /* folder of the pictures after every pass: frame-0000.png, frame-I-0000.png; NULL: not wanted */
    const char *ending;                 /* of their names: ".png" */
    char *command;                      /* owned: what makes the same bytes again, in the text of pictures and codes */
} tsar_job;
typedef struct {
    char room[TSAR_JOB_KINDS][TSAR_JOB_PATH];
    const char *paths[TSAR_JOB_KINDS];
} tsar_job_files;
tsar_status tsar_job_open(tsar_job *job, tsar_error *err); /* makes its command */
void tsar_job_close(tsar_job *job);
/* The names of the files of one image. */
tsar_status tsar_job_names(tsar_job_files *files, const tsar_job *job, size_t image, tsar_error *err);
/* Before the work: all names can be written, none twice, and none of them is read (names: what is). done [images] tells which images are there,
 * frames and all, from a run of the same command, which need not be made again; NULL: not asked. */
tsar_status tsar_job_check(const tsar_job *job, tsar_names *names, char *done, tsar_error *err);
/* Writes the files of image i of a result, with its picture rgb (NULL if none is wanted). */
tsar_status tsar_job_save(const tsar_job *job, const tsar_prompt *prompt, const tsar_result *result, size_t i, const uint8_t *rgb, tsar_error *err);
/* Frame `frame` of an image, counted from 0: its unfinished picture rgb [H][W][3], of codes [gh][gw] (are_labels: coarse labels, shown by the lowest code of
 * their cluster), -1 where nothing is decoded: these cells become grey. room [gh][gw]: scratch. The second writes it; there rgb is scratch, too. */
typedef struct { size_t image, frame; const int64_t *codes; int are_labels; } tsar_job_frame;
tsar_status tsar_job_draw_frame(const tsar_model *model, const tsar_job_frame *frame, int64_t *room, uint8_t *rgb, tsar_error *err);
tsar_status tsar_job_save_frame(const tsar_job *job, const tsar_job_frame *frame, int64_t *room, uint8_t *rgb, tsar_error *err);

/* A list of prompts (weights/prompts.c): one on each line, or one JSON object on each line with "prompt" and, where wanted, "seed" and "n" (other members
 * are left alone); blank lines hold none. Each prompt is a command of its own: a list gives the bytes of as many single commands, wherever they run. */
typedef struct {
    const char *text;
    size_t number;   /* of its line, from 0 */
    uint64_t seed;   /* its own, else seed + number */
    size_t images;   /* its own, else images */
} tsar_prompt_line;
typedef struct tsar_prompts tsar_prompts;

/* Reads path ("-": standard input) and keeps the lines whose number is shard modulo shards (0, 1: all); every line is checked. TSAR_INPUT names the line. */
tsar_status tsar_prompts_open(tsar_prompts **list, const char *path, uint64_t seed, size_t images, size_t shard, size_t shards, tsar_error *err);
void tsar_prompts_close(tsar_prompts *list); /* accepts NULL */
size_t tsar_prompts_count(const tsar_prompts *list);
const tsar_prompt_line *tsar_prompts_at(const tsar_prompts *list, size_t index);
/* "I/N", I from 0 to N; N means 0, so that numbers from 1 do as well. */
tsar_status tsar_shard_parse(size_t *shard, size_t *shards, const char *text, tsar_error *err);
/* The output of one prompt: OUTPUT/00007.png with an ending (".png"), else OUTPUT with -00007 in front of its own ending. */
tsar_status tsar_prompts_name(char *name, size_t size, const char *output, const char *ending, size_t number, tsar_error *err);

/* --------------------------------------------------------------------------------------- 10. trace and verify (tests/trace.c, tests/verify.c) */

/* The inputs of a trace: what is NULL or 0 is absent. */
typedef struct {
    int64_t *text; size_t n_text;
    int64_t *text_uncond; size_t n_text_uncond; /* of the unconditional sequence, where it does not follow from text */
    int64_t *t5_ids; size_t n_t5_ids;    /* of the text encoder, eos last */
    int has_class; size_t class_id;
    double *caption, *caption_mask;
    int64_t *codes; size_t h, w;         /* [h][w]: the tokenizer takes any, the transformer those of its grid */
    int64_t *coarse;                     /* [gh][gw] */
    uint8_t *image; size_t H, W;         /* [H][W][3] */
} tsar_inputs;

/* input.* of a file, checked against the model's configuration; to be closed. codes are the file's vq.codes where it gives neither
 * input.codes nor input.image. */
tsar_status tsar_inputs_read(tsar_inputs *inputs, const tsar_model *model, tsar_file *file, tsar_error *err);
void tsar_inputs_close(tsar_inputs *inputs);

/* Runs every part of the model that the inputs feed and gives input.* and every intermediate to sink, in computation order. */
tsar_status tsar_trace(const tsar_model *model, const tsar_inputs *inputs, const tsar_sink *sink, tsar_error *err);

/* The same into a trace file, with the model's configuration as metadata. only: NULL, or a pattern that the names of the tensors that are no inputs must
 * fit, * for any letters and ? for one. inside: also what is inside of blocks. Memory holds one tensor at a time where the system has temporary files. */
tsar_status tsar_trace_write(const tsar_model *model, const tsar_inputs *inputs, const char *only, int inside, const char *path, tsar_error *err);

/* Verdicts (SPEC 10). Every tensor of another implementation's trace is judged on its own stage: against y, what the nearest tensors before it that the
 * file itself holds give in double, up to the noise that the file's precision cannot avoid (the rule: tests/judge.c, measured in tests/VERDICTS.md). */
typedef enum {
    TSAR_IDENTICAL, /* every bit of the widened values */
    TSAR_SAME,      /* what the precision cannot tell apart */
    TSAR_NEAR_TIE,  /* codes that the precision cannot decide */
    TSAR_DIFFERS,
    TSAR_MISSHAPEN,
    TSAR_UNKNOWN,   /* a name of one of the model's parts that its trace does not have */
    TSAR_MISSING,   /* not in the file: no fault */
    TSAR_VERDICTS
} tsar_verdict;
extern const char *const tsar_verdict_names[TSAR_VERDICTS]; /* "identical", "same", "near-tie", "differs", ... */
typedef enum { TSAR_BY_TENSOR, TSAR_BY_ROW, TSAR_BY_ELEMENT } tsar_measure;
typedef struct {
    char name[128];
    tsar_verdict verdict;
    int first;                          /* this is the first tensor that differs, in computation order; unknown ones come last */
    tsar_dtype dtype;
    size_t rank, shape[TSAR_MAX_RANK];  /* theirs */
    tsar_dtype our_dtype;               /* F64, I64 or U8 */
    size_t our_rank, our_shape[TSAR_MAX_RANK];
    tsar_dtype precision;               /* p of its part; what it is judged in */
    double rms, max;                    /* RMS and largest element of the error, in units of RMS(y) (of 1 where y is all zero); infinite if not finite */
    double limit;                       /* on rms; F64, and where a tolerance was given: on max */
    double excess;                      /* the worst of all that is judged (tensor, rows, elements), in units of its limit: above 1 differs */
    tsar_measure by;                    /* what excess is of */
    size_t row, bad_rows;               /* the row of excess; rows beyond their limit */
    size_t place;                       /* flat index of the worst element, */
    double ours, theirs;                /* and its values: y and theirs */
    size_t bad, first_bad;              /* elements beyond their own limit (codes that differ), flat index of the first */
    size_t largest_at;                  /* flat index of the largest error */
    double from_inputs;                 /* RMS of the error where tsar goes on with its own values from the inputs on, same units; < 0: not measured */
    double margin;                      /* codes: the widest gap in units of what the precision decides: at most 1 is a near-tie */
    tsar_dtype passes_in;               /* the precision narrower than p in which a tensor that differs would pass; F64: none */
    char words[256];                    /* what else is to be said: of a shape, of a name, of a pattern */
} tsar_comparison;
typedef tsar_status (*tsar_comparison_fn)(void *context, const tsar_comparison *comparison, tsar_error *err);

typedef struct {
    double rtol;          /* < 0: the rule; else max |d| <= rtol RMS(y) */
    tsar_dtype precision; /* TSAR_DTYPES: the narrowest that holds every value of a part's own tensors; else F64, F32, F16 or BF16 */
    int strict;           /* near-ties are differences */
    int other_random;     /* decoding: the file was drawn with other random numbers; only whether a code was allowed is judged */
    const tsar_settings *settings; /* decoding: what the file was generated with; NULL: the model's defaults */
} tsar_verify_options;

/* A decision of the file that is not the one made here. */
#define TSAR_DECISIONS 64
typedef struct {
    size_t y, x, pass; /* of the code in [gh][gw] */
    int fine;          /* stage two of CTF */
    int64_t ours, theirs;
    double margin;     /* the gap in units of what the rule lets pass: at most 1 is a near-tie; infinite: a code that does not exist or was cut away */
    tsar_verdict verdict;
} tsar_decision_note;

#define TSAR_NAME_LIST 272
typedef struct {
    size_t verdicts[TSAR_VERDICTS]; /* how many tensors got which */
    size_t compared, ignored;       /* tensors with a verdict that is not missing; names left alone */
    char first[128];                /* the first that differs; "" if none does */
    char ignored_names[TSAR_NAME_LIST], missing_names[TSAR_NAME_LIST]; /* the first few */
    char note[256];                 /* about the inputs; "" if there is nothing to say */
    size_t n_decisions;             /* of decisions that are not the file's; the first of them: */
    tsar_decision_note decisions[TSAR_DECISIONS];
} tsar_verify_counts;

/* Judges every tensor of the trace in `path`, from the inputs that it holds, and reports in computation order. Returns TSAR_DIFFERENT when a tensor differs, is
 * misshapen or of unknown name (strict: or a near-tie). A trace need not be complete. */
tsar_status tsar_verify(const tsar_model *model, const char *path, const tsar_verify_options *options, tsar_comparison_fn report, void *context,
                        tsar_verify_counts *counts, tsar_error *err);
int tsar_verdict_is_difference(tsar_verdict verdict, int strict);

/* A comparison as a line of text and as the members of a JSON object; what is said of the whole file, line by line (0 behind the last), and the members that
 * close the object. All cut to size. */
void tsar_comparison_text(char *text, size_t size, const tsar_comparison *comparison);
void tsar_comparison_json(char *text, size_t size, const tsar_comparison *comparison);
void tsar_decision_json(char *text, size_t size, const tsar_decision_note *decision);
int tsar_counts_text(char *text, size_t size, const tsar_verify_counts *counts, size_t line);
void tsar_counts_json(char *text, size_t size, const tsar_verify_counts *counts, tsar_status status);

/* ------------------------------------------------------------------------------------------------ 11. import (weights/import.c) */

/* Called with a line about each thing skipped or assumed. */
typedef void (*tsar_note_fn)(void *context, const char *line);

/* Reads PyTorch (zip, legacy) and safetensors checkpoints, one or more, into one model file (SPEC 11). A path names a file, an index of shards
 * (.json) or a folder with either; a config.json beside them is read. keys and values, n of them, are what neither tells (n_head, grid_h, ...),
 * from=KEY (the dictionary of tensors to take: "ema", "model.state_dict") and drop=PREFIX (tensors to leave out). Bits are unchanged, or, with
 * dtype TSAR_BF16 in place of TSAR_DTYPES, rounded to nearest even. */
tsar_status tsar_import(const char *const *paths, size_t n_paths, const char *path, const char *const *keys, const char *const *values, size_t n,
                        tsar_dtype dtype, tsar_note_fn note, void *context, tsar_error *err);

/* Tells every file that tsar_import may read of these operands: they themselves (a folder as it is), shards, and what lies beside. */
tsar_status tsar_import_inputs(const char *const *paths, size_t n, tsar_path_fn tell, void *context, tsar_error *err);

/* A caption file for a t2i model: safetensors with `caption` and `mask`, or .npy features [1][n][caption_dim] or [n][caption_dim], n <= cond_tokens,
 * padded on the left. caption [cond_tokens][caption_dim] and mask [cond_tokens] are the caller's to tsar_free. */
tsar_status tsar_caption_read(const tsar_model *model, const char *path, double **caption, double **mask, tsar_error *err);

/* ---------------------------------------------------------------------------------------------------- 12. pictures (weights/files/picture.c) */

/* Binary PPM (P6, maxval 255), "-" is stdin. *rgb [H][W][3] is the caller's to tsar_free. */
tsar_status tsar_image_read(const char *path, uint8_t **rgb, size_t *H, size_t *W, tsar_error *err);
/* Whether path is a whole PNG with this text under this key, as tsar_image_write writes it: then the picture need not be made again. */
int tsar_image_has_text(const char *path, const char *key, const char *value);
int tsar_image_keeps_text(const char *path); /* whether a picture of this name has any text: a PNG */
/* TSAR_USAGE if tsar_image_write would refuse this name: for a check before the work. */
tsar_status tsar_image_name_check(const char *path, tsar_error *err);
/* PNG or PPM by the ending of path (.png, .ppm in any case; PPM below /dev/); keys/values, n of them, become the PNG's text. A PPM
 * holds nothing but its header and the pixels. Atomic. */
tsar_status tsar_image_write(const char *path, const uint8_t *rgb, size_t H, size_t W, const char *const *keys, const char *const *values, size_t n,
                             tsar_error *err);

/* Text in a picture rgb [H][W][3], for captions: a typeface of its own, printable ASCII (anything else is drawn as '?'), each point
 * of it dot x dot pixels. Its first line has its upper left corner at (x, y), each one is TSAR_LINE points high; a line that would
 * be wider than `width` pixels is broken at a blank, a longer word where it must. What lies outside the picture is cut off.
 * Returns the number of lines; rgb NULL: only that. */
#define TSAR_LINE 10
size_t tsar_image_text(uint8_t *rgb, size_t H, size_t W, size_t x, size_t y, size_t width, size_t dot, const uint8_t colour[3], const char *text);
/* The width of the first n characters of text in one line, in points. */
size_t tsar_image_text_width(const char *text, size_t n);

/* The decode order as a picture: a cell for each fused token of step_of [rows][columns], coloured by its pass, and the scale below. */
tsar_status tsar_order_map_write(const char *path, const int64_t *step_of, size_t rows, size_t columns, tsar_error *err);

/* ------------------------------------------------------------------------------------------------- 13. measurements (tests/bench.c) */

typedef struct {
    char name[64];    /* what was measured */
    double value;     /* of it */
    char unit[16];
    double limit;     /* what the machine's own loop reaches in the same run, same unit; 0 if there is none */
} tsar_measurement;
typedef tsar_status (*tsar_measurement_fn)(void *context, const tsar_measurement *measurement, tsar_error *err);

/* Measures kernels, decoding and the tokenizer against loops that only read memory, or only multiply and add in registers.
 * model NULL: synthetic ones, at most about 2 GB. */
tsar_status tsar_bench(const tsar_model *model, size_t threads, tsar_measurement_fn report, void *context, tsar_error *err);

/* ------------------------------------------------------------------------------------------- 14. what a model costs (weights/info.c) */

/* Describes a model file line by line from its configuration and header alone, with another grid [2] of codes if that is not NULL: shapes,
 * parameters and bytes of each part, multiply-adds of a token and an image, passes in raster order and with ZipAR's windows, memory of keys and
 * values. */
tsar_status tsar_info(const char *path, const size_t *grid, tsar_note_fn print, void *context, tsar_error *err);

/* ------------------------------------------------------------------------------------------- 15. coarse labels (weights/cluster.c) */

/* Clusters the codewords of model file `from` into k labels (tsar_cluster) and writes `to`: its tokenizer and metadata, n_coarse = k and
 * ctf.cluster_of; gpt.* and fine.* too if they have k labels already, else they are left out with a note. */
tsar_status tsar_cluster_write(const char *from, const char *to, size_t k, uint64_t seed, size_t threads, tsar_note_fn note, void *context, tsar_error *err);

#ifdef __cplusplus
}
#endif

#endif
