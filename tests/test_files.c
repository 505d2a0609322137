/* Tests of weights/files/safetensors.c, weights/model.c and weights/text.c, in the order of their sections: round trips,
 * hostile headers, atomic output, configurations, synthesis and loading, text. Files are written to the current directory. */
#include "../weights/text.h"
#include "test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char path[] = "test_files.tmp.safetensors", other_path[] = "test_files.tmp.2.safetensors";

static uint64_t random_state = 1;

static uint64_t random_word(void) { return tsar_mix(random_state += UINT64_C(0x9E3779B97F4A7C15)); }

static size_t random_below(size_t n) { return (size_t)(random_word() >> 33) % n; }

/* The bytes of a file (free), their number in *size; NULL if it cannot be read. */
static unsigned char *slurp(const char *name, size_t *size)
{
    FILE *stream = fopen(name, "rb");
    unsigned char *bytes = NULL;
    size_t room = 0, n = 0, got = 1;
    for (; stream && got; n += got) {
        if (n + 65536 > room) bytes = realloc(bytes, room = 2 * room + 65536);
        got = bytes ? fread(bytes + n, 1, 65536, stream) : 0;
    }
    if (stream) fclose(stream);
    *size = n;
    return bytes;
}

static void spill(const char *name, const void *bytes, size_t size)
{
    FILE *stream = fopen(name, "wb");
    if (stream) {
        fwrite(bytes, 1, size, stream);
        fclose(stream);
    }
}

static int same_files(const char *a, const char *b)
{
    size_t na, nb;
    unsigned char *ba = slurp(a, &na), *bb = slurp(b, &nb);
    const int same = ba && bb && na == nb && !memcmp(ba, bb, na);
    free(ba);
    free(bb);
    return same;
}

static int exists(const char *name)
{
    FILE *stream = fopen(name, "rb");
    if (stream) fclose(stream);
    return stream != NULL;
}

/* ------------------------------------------------------------------------------------------------------- round trips */

#define DTYPE_ELEMENTS ((size_t)60) /* 3 x 4 x 5 */

/* One tensor of every dtype with random bytes, given in pieces, and tensors of rank 0 and without elements. */
static tsar_status write_everything(const char *name, int reverse_metadata, unsigned char data[TSAR_DTYPES][8 * DTYPE_ELEMENTS], tsar_error *err)
{
    static const char *const keys[3] = { "b", "a \"quoted\" \\ key", "\xC3\xA4\xE2\x82\xAC\xF0\x9F\x8E\xA8" };
    const size_t shape[3] = { 3, 4, 5 }, empty[2] = { 7, 0 };
    const double scalar = 0.5;
    tsar_writer *writer;
    tsar_status status = tsar_writer_open(&writer, name, err);
    if (status != TSAR_OK) return status;
    for (int i = 0; i < 3 && status == TSAR_OK; i++) status = tsar_writer_meta(writer, keys[reverse_metadata ? 2 - i : i], "line\none\ttab\x01", err);
    if (status == TSAR_OK) status = tsar_writer_meta(writer, "b", "replaced", err);
    for (int d = TSAR_DTYPES - 1; d >= 0 && status == TSAR_OK; d--)
        status = tsar_writer_declare(writer, tsar_dtype_name((tsar_dtype)d), (tsar_dtype)d, 3, shape, err);
    if (status == TSAR_OK) status = tsar_writer_declare(writer, "scalar", TSAR_F64, 0, NULL, err);
    if (status == TSAR_OK) status = tsar_writer_declare(writer, "empty", TSAR_I16, 2, empty, err);
    for (const tsar_tensor *t; status == TSAR_OK && (t = tsar_writer_next(writer)) != NULL;) {
        const unsigned char *bytes = !strcmp(t->name, "scalar") ? (const void *)&scalar : data[t->dtype];
        for (uint64_t done = 0, piece = 1; done < t->count && status == TSAR_OK; done += piece, piece = t->count - done < 7 ? t->count - done : 7)
            status = tsar_writer_put(writer, bytes + done * tsar_dtype_size(t->dtype), piece, err);
    }
    if (status == TSAR_OK) return tsar_writer_commit(writer, err);
    tsar_writer_abandon(writer);
    return status;
}

static void check_conversions(tsar_file *file, const tsar_tensor *t, const unsigned char *bytes)
{
    tsar_error err = { "" };
    double wide[DTYPE_ELEMENTS];
    int64_t whole[DTYPE_ELEMENTS];
    const int is_float = t->dtype == TSAR_F64 || t->dtype == TSAR_F32 || t->dtype == TSAR_F16 || t->dtype == TSAR_BF16;
    if (t->dtype >= TSAR_FOREIGN) {
        CHECK(tsar_file_read_i64(file, t, 0, t->count, whole, &err) == TSAR_INPUT && tsar_file_read_f64(file, t, 0, t->count, wide, &err) == TSAR_INPUT &&
                  strstr(err.text, t->name),
              "%s is no number", t->name);
        return;
    }
    CHECK(is_float == (tsar_file_read_i64(file, t, 0, t->count, whole, &err) != TSAR_OK) || t->dtype == TSAR_U64, "%s as integers", t->name);
    if (is_float) {
        CHECK(tsar_file_read_f64(file, t, 0, t->count, wide, &err) == TSAR_OK, "%s as double: %s", t->name, err.text);
        for (size_t i = 0; i < DTYPE_ELEMENTS; i++) {
            double expected;
            float single;
            uint16_t half;
            memcpy(&expected, bytes + 8 * i, 8);
            memcpy(&single, bytes + 4 * i, 4);
            memcpy(&half, bytes + 2 * i, 2);
            if (t->dtype != TSAR_F64) expected = t->dtype == TSAR_F32 ? (double)single : t->dtype == TSAR_F16 ? tsar_widen_f16(half) : tsar_widen_bf16(half);
            CHECK(wide[i] == expected || (wide[i] != wide[i] && expected != expected), "%s[%d] as double", t->name, (int)i);
        }
    } else if (tsar_dtype_size(t->dtype) < 8) {
        CHECK(tsar_file_read_f64(file, t, 0, t->count, wide, &err) == TSAR_OK, "%s as double: %s", t->name, err.text);
        for (size_t i = 0; i < DTYPE_ELEMENTS; i++) CHECK(wide[i] == (double)whole[i], "%s[%d] as double and integer", t->name, (int)i);
    }
}

static void test_round_trip(void)
{
    static unsigned char data[TSAR_DTYPES][8 * DTYPE_ELEMENTS], back[8 * DTYPE_ELEMENTS];
    tsar_error err = { "" };
    tsar_file *file;
    size_t previous = 8;
    for (size_t d = 0; d < TSAR_DTYPES; d++)
        for (size_t i = 0; i < sizeof data[d]; i++) data[d][i] = (unsigned char)(random_word() >> 56);
    CHECK(write_everything(path, 0, data, &err) == TSAR_OK, "write: %s", err.text);
    CHECK(write_everything(other_path, 1, data, &err) == TSAR_OK, "write: %s", err.text);
    CHECK(same_files(path, other_path), "the same content gives the same bytes");
    if (!CHECK(tsar_file_open(&file, path, &err) == TSAR_OK, "open: %s", err.text)) return;
    CHECK(tsar_file_count(file) == TSAR_DTYPES + 2, "%d tensors", (int)tsar_file_count(file));
    CHECK(!strcmp(tsar_file_path(file), path), "path");
    for (size_t i = 0; i < tsar_file_count(file); i++) {
        const tsar_tensor *t = tsar_file_at(file, i);
        const size_t size = tsar_dtype_size(t->dtype);
        CHECK(tsar_file_find(file, t->name) == t, "find %s", t->name);
        CHECK(size <= previous && t->offset % size == 0, "%s is aligned", t->name);
        previous = size;
        if (t->rank != 3) continue;
        CHECK(!strcmp(t->name, tsar_dtype_name(t->dtype)) && t->shape[0] == 3 && t->shape[1] == 4 && t->shape[2] == 5, "shape of %s", t->name);
        CHECK(tsar_file_read(file, t, 0, t->count, back, &err) == TSAR_OK && !memcmp(back, data[t->dtype], (size_t)t->count * size), "data of %s", t->name);
        CHECK(tsar_file_read(file, t, 50, 10, back, &err) == TSAR_OK && !memcmp(back, data[t->dtype] + 50 * size, 10 * size), "end of %s", t->name);
        CHECK(tsar_file_read(file, t, 7, 3, back, &err) == TSAR_OK && !memcmp(back, data[t->dtype] + 7 * size, 3 * size), "piece of %s", t->name);
        CHECK(tsar_file_read(file, t, 50, 11, back, &err) == TSAR_INPUT, "read beyond %s", t->name);
        check_conversions(file, t, data[t->dtype]);
    }
    const tsar_tensor *scalar = tsar_file_find(file, "scalar"), *empty = tsar_file_find(file, "empty");
    double value = 0;
    CHECK(scalar && scalar->rank == 0 && scalar->count == 1 && tsar_file_read_f64(file, scalar, 0, 1, &value, &err) == TSAR_OK && value == 0.5, "rank 0");
    CHECK(empty && empty->rank == 2 && empty->count == 0 && tsar_file_read(file, empty, 0, 0, back, &err) == TSAR_OK, "no elements");
    CHECK(!tsar_file_find(file, "nothing") && !tsar_file_meta(file, "nothing") && tsar_file_meta_count(file) == 3, "absent names");
    const char *replaced = tsar_file_meta(file, "b"), *escaped = tsar_file_meta(file, "a \"quoted\" \\ key");
    CHECK(replaced && !strcmp(replaced, "replaced"), "replaced metadata");
    CHECK(escaped && !strcmp(escaped, "line\none\ttab\x01"), "escaped metadata");
    CHECK(tsar_file_meta(file, "\xC3\xA4\xE2\x82\xAC\xF0\x9F\x8E\xA8") != NULL, "UTF-8 metadata");
    tsar_file_close(file);
}

/* -------------------------------------------------------------------------------------------------- hostile headers */

/* Writes a file of a header of `length` bytes and `data` zero bytes, and opens it. */
static tsar_status open_header(const char *header, size_t length, size_t data, tsar_file **file, tsar_error *err)
{
    unsigned char *bytes = calloc(1, 8 + length + data + 1);
    err->text[0] = 0;
    *file = NULL;
    if (!bytes) return TSAR_OK;
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)((uint64_t)length >> (8 * i));
    memcpy(bytes + 8, header, length);
    spill(path, bytes, 8 + length + data);
    free(bytes);
    return tsar_file_open(file, path, err);
}

#define T(shape, begin, end) "{\"dtype\":\"F32\",\"shape\":[" shape "],\"data_offsets\":[" begin "," end "]}"

static const struct {
    const char *header;
    size_t data;
    const char *reason;
} hostile[] = { { "", 0, "'{'" },
                { " {}", 0, "'{'" },
                { "[]", 0, "'{'" },
                { "{", 0, "string" },
                { "{}x", 0, "space" },
                { "{}\n", 0, "space" },
                { "{\"a\":" T("2", "0", "8") "}{}", 8, "space" },
                { "{\"a\":" T("2", "0", "8"), 8, "'}'" },
                { "{\"a\":" T("2", "0", "8") ",}", 8, "string" },
                { "{\"a\" " T("2", "0", "8") "}", 8, "':'" },
                { "{\"a\":1}", 0, "'{'" },
                { "{\"a\":null}", 0, "'{'" },
                { "{\"a\":[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]}", 0, "'{'" },
                { "{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{}}}}}}", 0, "unknown key" },
                { "{\"a\":{}}", 0, "no dtype" },
                { "{\"a\":{\"dtype\":\"F32\"}}", 0, "no shape" },
                { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "no data_offsets" },
                { "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "second key" },
                { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "second key" },
                { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"more\":1}}", 4, "unknown key" },
                { "{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "unknown dtype" },
                { "{\"a\":{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "unknown dtype" },
                { "{\"a\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "string" },
                { "{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4, "'['" },
                { "{\"a\":" T("1,", "0", "4") "}", 4, "integer" },
                { "{\"a\":" T(",1", "0", "4") "}", 4, "integer" },
                { "{\"a\":" T("1 1", "0", "4") "}", 4, "']'" },
                { "{\"a\":" T("-1", "0", "4") "}", 4, "integer" },
                { "{\"a\":" T("+1", "0", "4") "}", 4, "integer" },
                { "{\"a\":" T("01", "0", "4") "}", 4, "integer" },
                { "{\"a\":" T("1e0", "0", "4") "}", 4, "integer" },
                { "{\"a\":" T("1.0", "0", "4") "}", 4, "integer" },
                { "{\"a\":" T("0x1", "0", "4") "}", 4, "']'" },
                { "{\"a\":" T("\"1\"", "0", "4") "}", 4, "integer" },
                { "{\"a\":" T("true", "0", "4") "}", 4, "integer" },
                { "{\"a\":" T("18446744073709551616", "0", "4") "}", 4, "2^64" },
                { "{\"a\":" T("99999999999999999999999999", "0", "4") "}", 4, "2^64" },
                { "{\"a\":" T("18446744073709551615", "0", "4") "}", 4, "too large" },
                { "{\"a\":" T("4294967296,4294967296", "0", "0") "}", 0, "too large" },
                { "{\"a\":" T("2147483648,2147483648,4", "0", "0") "}", 0, "too large" },
                { "{\"a\":" T("1,1,1,1,1,1,1,1,1", "0", "4") "}", 4, "8 dimensions" },
                { "{\"a\":" T("1073741824", "0", "4294967296") "}", 64, "end of the file" },
                { "{\"a\":" T("536870912", "0", "2147483648") "}", 64, "end of the file" },
                { "{\"a\":" T("2305843009213693952", "0", "9223372036854775808") "}", 64, "" },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[18446744073709551613,18446744073709551616]}}", 64, "2^64" },
                { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[18446744073709551613,18446744073709551615]}}", 64, "gap" },
                { "{\"a\":" T("1", "0", "8") "}", 8, "takes 4 bytes" },
                { "{\"a\":" T("2", "0", "4") "}", 4, "takes 8 bytes" },
                { "{\"a\":" T("2", "8", "0") "}", 8, "takes 8 bytes" },
                { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "two offsets" },
                { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[]}}", 4, "two offsets" },
                { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 4, "2 offsets" },
                { "{\"a\":" T("1", "4", "8") "}", 8, "gap" },
                { "{\"a\":" T("1", "0", "4") ",\"b\":" T("1", "8", "12") "}", 12, "gap" },
                { "{\"a\":" T("1", "0", "4") ",\"b\":" T("1", "0", "4") "}", 4, "overlap" },
                { "{\"a\":" T("2", "0", "8") ",\"b\":" T("2", "4", "12") "}", 12, "overlap" },
                { "{\"a\":" T("0", "4", "4") "}", 0, "gap" },
                { "{\"a\":" T("1", "0", "4") "}", 3, "end of the file" },
                { "{\"a\":" T("1", "0", "4") "}", 0, "end of the file" },
                { "{\"a\":" T("1", "0", "4") "}", 5, "behind the data" },
                { "{}", 1, "behind the data" },
                { "{\"a\":" T("1", "0", "4") ",\"a\":" T("1", "4", "8") "}", 8, "twice" },
                { "{\"a\":" T("1", "0", "4") ",\"\\u0061\":" T("1", "4", "8") "}", 8, "twice" },
                { "{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "twice" },
                { "{\"__metadata__\":{},\"__metadata__\":{}}", 0, "twice" },
                { "{\"__metadata__\":{\"k\":1}}", 0, "string" },
                { "{\"__metadata__\":{\"k\":{\"k\":\"v\"}}}", 0, "string" },
                { "{\"__metadata__\":[]}", 0, "'{'" },
                { "{\"__metadata__\":null}", 0, "'{'" },
                { "{\"__metadata__\":{\"k\":\"v\"", 0, "'}'" },
                { "{\"__metadata__\":{\"k\":\"v", 0, "end of a string" },
                { "{\"__metadata__\":{\"k\":\"v\\", 0, "escape" },
                { "{\"__metadata__\":{\"k\":\"v\\x41\"}}", 0, "escape" },
                { "{\"__metadata__\":{\"k\":\"\\u004\"}}", 0, "\\u" },
                { "{\"__metadata__\":{\"k\":\"\\u0000\"}}", 0, "\\u" },
                { "{\"__metadata__\":{\"k\":\"\\ud83c\"}}", 0, "\\u" },
                { "{\"__metadata__\":{\"k\":\"\\ud83c\\u0041\"}}", 0, "\\u" },
                { "{\"__metadata__\":{\"k\":\"\\udfa8\"}}", 0, "\\u" },
                { "{\"__metadata__\":{\"k\":\"\n\"}}", 0, "UTF-8" },
                { "{\"__metadata__\":{\"k\":\"\x80\"}}", 0, "UTF-8" },
                { "{\"__metadata__\":{\"k\":\"\xC0\xAF\"}}", 0, "UTF-8" },
                { "{\"__metadata__\":{\"k\":\"\xE0\x80\xAF\"}}", 0, "UTF-8" },
                { "{\"__metadata__\":{\"k\":\"\xED\xA0\x80\"}}", 0, "UTF-8" },
                { "{\"__metadata__\":{\"k\":\"\xF4\x90\x80\x80\"}}", 0, "UTF-8" },
                { "{\"__metadata__\":{\"k\":\"\xFF\"}}", 0, "UTF-8" },
                { "{\"__metadata__\":{\"k\":\"\xE2\x82\"}}", 0, "UTF-8" } };

static void test_hostile_headers(void)
{
    static const char mixed[] = "{ \"__metadata__\" : {\"\\u006b\" :\"\\ud83c\\udfa8\\u20ac\\u00e4\\n\\/\"} ,\t\"z\":" T("0", "4", "4") ",\r\n\"a\" : " T(
        "", "0", "4") ",\"e\":" T("3,0,4294967295", "0", "0") "}   ";
    tsar_error err;
    tsar_file *file;
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        const tsar_status status = open_header(hostile[i].header, strlen(hostile[i].header), hostile[i].data, &file, &err);
        CHECK(status == TSAR_INPUT && !file, "refused: %s", hostile[i].header);
        CHECK(strstr(err.text, path) && strstr(err.text, hostile[i].reason), "%s: \"%s\" should say %s", hostile[i].header, err.text, hostile[i].reason);
        tsar_file_close(file);
    }
    CHECK(open_header("{\"a\0b\":1}", 9, 0, &file, &err) == TSAR_INPUT, "NUL in a name");
    CHECK(open_header("{}", 2, 0, &file, &err) == TSAR_OK && tsar_file_count(file) == 0, "no tensors: %s", err.text);
    tsar_file_close(file);
    CHECK(open_header(mixed, strlen(mixed), 4, &file, &err) == TSAR_OK, "white space and escapes: %s", err.text);
    if (file) {
        const char *value = tsar_file_meta(file, "k");
        CHECK(value && !strcmp(value, "\xF0\x9F\x8E\xA8\xE2\x82\xAC\xC3\xA4\n/"), "decoded escapes");
        CHECK(tsar_file_count(file) == 3 && !strcmp(tsar_file_at(file, 0)->name, "e") && !strcmp(tsar_file_at(file, 2)->name, "z"), "order of the data");
    }
    tsar_file_close(file);
}

/* Files that end within every structure, and headers of impossible length. */
static void test_damaged_files(void)
{
    static const char header[] = "{\"a\":" T("2,3", "0", "24") ",\"__metadata__\":{\"k\":\"v\"}}";
    static const uint64_t lengths[] = { 1, 7, 100000001, UINT64_C(1) << 31, UINT64_C(1) << 32, UINT64_C(1) << 63, UINT64_MAX - 7, UINT64_MAX };
    tsar_error err;
    tsar_file *file;
    size_t size;
    open_header(header, strlen(header), 24, &file, &err);
    CHECK(file != NULL, "intact: %s", err.text);
    tsar_file_close(file);
    unsigned char *bytes = slurp(path, &size);
    for (size_t n = 0; bytes && n < size; n++) {
        spill(path, bytes, n);
        CHECK(tsar_file_open(&file, path, &err) == TSAR_INPUT && strstr(err.text, path), "cut to %d bytes: %s", (int)n, err.text);
        tsar_file_close(file);
    }
    for (size_t i = 0; bytes && i < sizeof lengths / sizeof *lengths; i++) {
        for (int b = 0; b < 8; b++) bytes[b] = (unsigned char)(lengths[i] >> (8 * b));
        spill(path, bytes, size);
        CHECK(tsar_file_open(&file, path, &err) == TSAR_INPUT && strstr(err.text, path), "header length %.17g: %s", (double)lengths[i], err.text);
        tsar_file_close(file);
    }
    free(bytes);
    CHECK(tsar_file_open(&file, "no/such/file", &err) == TSAR_INPUT && strstr(err.text, "no/such/file"), "absent file: %s", err.text);
    CHECK(tsar_file_open(&file, ".", &err) == TSAR_INPUT && strstr(err.text, "."), "directory: %s", err.text);
}

/* Any byte of a good file replaced: opened or refused, never anything else (run it under a sanitizer). */
static void test_random_damage(void)
{
    static const char header[] = "{\"a\":" T("2,3", "0", "24") ",\"__metadata__\":{\"k\":\"v\\n\"},\"b\":" T("1", "24", "28") "}";
    tsar_error err;
    tsar_file *file;
    size_t size;
    open_header(header, strlen(header), 28, &file, &err);
    tsar_file_close(file);
    unsigned char *bytes = slurp(path, &size);
    for (int round = 0; bytes && round < 3000; round++) {
        const size_t at = random_below(size);
        const unsigned char old = bytes[at];
        bytes[at] = round % 2 ? (unsigned char)random_below(256) : (unsigned char)"0\"{}[],:\\ "[random_below(10)];
        spill(path, bytes, size);
        const tsar_status status = tsar_file_open(&file, path, &err);
        if (status != TSAR_INPUT || !file) CHECK(status == TSAR_OK || (status == TSAR_INPUT && !file), "byte %d replaced", (int)at);
        tsar_file_close(file);
        bytes[at] = old;
    }
    free(bytes);
}

/* ------------------------------------------------------------------------------------------------------------ output */

static void test_output(void)
{
    tsar_error err = { "" };
    tsar_output *output;
    tsar_writer *writer;
    const size_t three = 3;
    const float values[4] = { 1, 2, 3, 4 };
    spill(path, "old", 3);
    CHECK(tsar_output_open(&output, path, &err) == TSAR_OK && tsar_output_write(output, "new", 3, &err) == TSAR_OK, "write: %s", err.text);
    size_t size;
    unsigned char *bytes = slurp(path, &size);
    CHECK(bytes && size == 3 && !memcmp(bytes, "old", 3), "the old file stands until the commit");
    free(bytes);
    CHECK(tsar_output_commit(output, &err) == TSAR_OK, "commit: %s", err.text);
    bytes = slurp(path, &size);
    CHECK(bytes && size == 3 && !memcmp(bytes, "new", 3), "the new file");
    free(bytes);
    CHECK(tsar_output_open(&output, path, &err) == TSAR_OK && tsar_output_write(output, "x", 1, &err) == TSAR_OK, "write: %s", err.text);
    tsar_output_abandon(output);
    bytes = slurp(path, &size);
    CHECK(bytes && size == 3 && !memcmp(bytes, "new", 3), "abandoned: the file as it was");
    free(bytes);
    CHECK(tsar_output_open(&output, "no/such/folder/file", &err) == TSAR_INPUT && strstr(err.text, "no/such/folder/file"), "absent folder: %s", err.text);
    CHECK(tsar_output_open(&output, "", &err) == TSAR_INPUT, "empty name: %s", err.text);
    tsar_output_abandon(NULL);

    CHECK(tsar_writer_open(&writer, path, &err) == TSAR_OK && tsar_writer_declare(writer, "a", TSAR_F32, 1, &three, &err) == TSAR_OK, "declare");
    CHECK(tsar_writer_put(writer, values, 1, &err) == TSAR_INPUT, "put before next");
    CHECK(tsar_writer_next(writer) != NULL && tsar_writer_put(writer, values, 4, &err) == TSAR_INPUT, "more than declared");
    CHECK(tsar_writer_put(writer, values, 2, &err) == TSAR_OK && tsar_writer_next(writer) == NULL, "next before the end");
    CHECK(tsar_writer_put(writer, values, 1, &err) == TSAR_INPUT, "put after that");
    CHECK(tsar_writer_declare(writer, "b", TSAR_F32, 1, &three, &err) == TSAR_INPUT && tsar_writer_meta(writer, "b", "", &err) == TSAR_INPUT, "too late");
    CHECK(tsar_writer_commit(writer, &err) == TSAR_INPUT && strstr(err.text, "2 of its 3"), "incomplete: %s", err.text);
    CHECK(tsar_writer_open(&writer, path, &err) == TSAR_OK && tsar_writer_declare(writer, "a", TSAR_F32, 1, &three, &err) == TSAR_OK, "declare");
    CHECK(tsar_writer_commit(writer, &err) == TSAR_INPUT, "no data: %s", err.text);
    CHECK(tsar_writer_open(&writer, path, &err) == TSAR_OK, "open");
    for (int i = 0; i < 2; i++) CHECK(tsar_writer_declare(writer, "a", TSAR_F32, 1, &three, &err) == TSAR_OK, "declare");
    CHECK(tsar_writer_declare(writer, "__metadata__", TSAR_F32, 1, &three, &err) == TSAR_INPUT, "reserved name");
    CHECK(tsar_writer_declare(writer, "\xFF", TSAR_F32, 1, &three, &err) == TSAR_INPUT && tsar_writer_meta(writer, "k", "\xFF", &err) == TSAR_INPUT,
          "no UTF-8");
    CHECK(tsar_writer_next(writer) == NULL && tsar_writer_commit(writer, &err) == TSAR_INPUT && strstr(err.text, "twice"), "two of a name: %s", err.text);
    bytes = slurp(path, &size);
    CHECK(bytes && size == 3 && !memcmp(bytes, "new", 3), "after all that, the file as it was");
    free(bytes);
    if (exists("/dev/full")) {
        CHECK(tsar_output_open(&output, "/dev/full", &err) == TSAR_OK, "a full disk opens: %s", err.text);
        CHECK(tsar_output_write(output, "x", 1, &err) == TSAR_OK && tsar_output_commit(output, &err) == TSAR_ROOM && strstr(err.text, "/dev/full"),
              "a full disk: %s", err.text);
    }
}

/* ---------------------------------------------------------------------------------------------------- configurations */

#define MAX_KEYS 40

/* key=value pairs, separated by blanks, in a buffer of their own. */
typedef struct {
    char text[1024];
    const char *keys[MAX_KEYS], *values[MAX_KEYS];
    size_t n;
} settings;

static void add_keys(settings *s, const char *pairs)
{
    const size_t used = s->n ? (size_t)(s->values[s->n - 1] - s->text) + strlen(s->values[s->n - 1]) + 1 : 0;
    char *at = s->text + used;
    snprintf(at, sizeof s->text - used, "%s", pairs);
    for (char *key = strtok(at, " "); key && s->n < MAX_KEYS; key = strtok(NULL, " ")) {
        char *equals = strchr(key, '=');
        *equals = 0;
        s->keys[s->n] = key;
        s->values[s->n++] = equals[1] == '_' ? " 1" : equals + 1; /* _ stands for a blank and a digit */
    }
}

/* The last value of a key; "-" for absent. */
static const char *lookup(const void *source, const char *key)
{
    const settings *s = source;
    for (size_t i = s->n; i > 0; i--)
        if (!strcmp(s->keys[i - 1], key)) return strcmp(s->values[i - 1], "-") ? s->values[i - 1] : NULL;
    return NULL;
}

static const char shuffle_keys[] = "arch=token-shuffle dim=64 n_layer=2 n_head=4 n_kv_head=2 ffn_hidden=96 norm_eps=1e-5 rope=1d "
                                   "text_vocab=300 codebook_size=32 "
                                   "grid_h=8 grid_w=4 shuffle=2 shuffle_blocks=2 shuffle_hidden=48";
static const char c2i_keys[] = "arch=llamagen-c2i dim=64 n_layer=2 n_head=4 n_kv_head=4 ffn_hidden=192 norm_eps=1e-05 rope=2d "
                               "codebook_size=128 grid_h=4 grid_w=4 "
                               "cond_tokens=1 num_classes=10 seed=1";
static const char t2i_keys[] = "arch=llamagen-t2i dim=64 n_layer=1 n_head=4 n_kv_head=4 ffn_hidden=96 norm_eps=1e-05 rope=2d "
                               "codebook_size=32 grid_h=4 grid_w=4 "
                               "cond_tokens=6 caption_dim=24 seed=3";
static const char vq_keys[] = "vq_ch=32 vq_ch_mult=2,1 vq_res_blocks=1 vq_z_channels=32 vq_embed_dim=8 vq_l2_norm=1 codebook_size=32 seed=6";
static const char fine_keys[] = "fine_dim=64 fine_n_layer=2 fine_n_head=4 fine_ffn_hidden=96 norm_eps=1e-05 codebook_size=256 "
                                "n_coarse=16 grid_h=6 grid_w=5 seed=31";

static const struct {
    const char *base, *change, *named;
} bad_configurations[] = { { shuffle_keys, "arch=gpt", "arch=gpt" },
                           { shuffle_keys, "arch=-", "arch" },
                           { shuffle_keys, "dim=-", "dim" },
                           { shuffle_keys, "dim=0", "dim=0" },
                           { shuffle_keys, "dim=-64", "dim=-64" },
                           { shuffle_keys, "dim=+64", "dim=+64" },
                           { shuffle_keys, "dim=64.0", "dim=64.0" },
                           { shuffle_keys, "dim=64x", "dim=64x" },
                           { shuffle_keys, "dim=_", "dim= 1" },
                           { shuffle_keys, "dim=", "dim=" },
                           { shuffle_keys, "dim=0x40", "dim=0x40" },
                           { shuffle_keys, "dim=16777217", "16777216" },
                           { shuffle_keys, "dim=18446744073709551680", "dim=" },
                           { shuffle_keys, "n_layer=0", "n_layer" },
                           { shuffle_keys, "n_layer=-", "n_layer" },
                           { shuffle_keys, "n_head=-", "n_head" },
                           { shuffle_keys, "n_head=3", "n_head=3" },
                           { shuffle_keys, "n_head=64 n_kv_head=64", "multiple of 2" },
                           { shuffle_keys, "n_kv_head=3", "n_kv_head=3" },
                           { shuffle_keys, "n_kv_head=8", "n_kv_head=8" },
                           { shuffle_keys, "n_kv_head=-", "n_kv_head" },
                           { shuffle_keys, "ffn_hidden=-", "ffn_hidden" },
                           { shuffle_keys, "norm_eps=-", "norm_eps" },
                           { shuffle_keys, "norm_eps=0", "norm_eps=0" },
                           { shuffle_keys, "norm_eps=-1e-5", "norm_eps" },
                           { shuffle_keys, "norm_eps=nan", "norm_eps" },
                           { shuffle_keys, "norm_eps=inf", "norm_eps" },
                           { shuffle_keys, "norm_eps=1e999", "norm_eps" },
                           { shuffle_keys, "norm_eps=1e-999", "norm_eps" },
                           { shuffle_keys, "norm_eps=0x1p-10", "norm_eps" },
                           { shuffle_keys, "norm_eps=1e", "norm_eps" },
                           { shuffle_keys, "norm_eps=.", "norm_eps" },
                           { shuffle_keys, "norm_eps=1.2.3", "norm_eps" },
                           { shuffle_keys, "norm_eps=_", "norm_eps" },
                           { shuffle_keys, "norm_eps=1,5", "norm_eps" },
                           { shuffle_keys, "rope=-", "rope" },
                           { shuffle_keys, "rope=3d", "rope=3d" },
                           { shuffle_keys, "rope_base=0", "rope_base" },
                           { shuffle_keys, "text_vocab=2", "text_vocab=2" },
                           { shuffle_keys, "text_vocab=2147483648", "2147483647" },
                           { shuffle_keys, "codebook_size=-", "codebook_size" },
                           { shuffle_keys, "grid_h=-", "grid_h" },
                           { shuffle_keys, "grid_h=7", "7 x 4" },
                           { shuffle_keys, "grid_h=65536 grid_w=65536", "codes" },
                           { shuffle_keys, "shuffle=-", "shuffle" },
                           { shuffle_keys, "shuffle=3", "shuffle^2=9" },
                           { shuffle_keys, "shuffle=16777216", "shuffle^2" },
                           { shuffle_keys, "shuffle_blocks=-", "shuffle_blocks" },
                           { shuffle_keys, "shuffle_hidden=-", "shuffle_hidden" },
                           { shuffle_keys, "n_coarse=33", "n_coarse=33" },
                           { shuffle_keys, "n_coarse=0", "n_coarse=0" },
                           { shuffle_keys, "seed=-1", "seed" },
                           { shuffle_keys, "seed=18446744073709551616", "seed" },
                           { shuffle_keys, "default_cfg=x", "default_cfg=x" },
                           { shuffle_keys, "default_temperature=0", "temperature" },
                           { shuffle_keys, "default_top_p=1.5", "default_top_p" },
                           { shuffle_keys, "default_top_k=-1", "default_top_k" },
                           { shuffle_keys, "default_cfg_schedule=square", "square" },
                           { c2i_keys, "num_classes=-", "num_classes" },
                           { c2i_keys, "cond_tokens=2", "cond_tokens=2" },
                           { c2i_keys, "n_head=32 n_kv_head=32", "multiple of 4" },
                           { c2i_keys, "shuffle=2", "shuffle" },
                           { t2i_keys, "caption_dim=-", "caption_dim" },
                           { t2i_keys, "cond_tokens=-", "cond_tokens" },
                           { vq_keys, "vq_ch_mult=-", "vq_ch_mult" },
                           { vq_keys, "vq_ch_mult=1,", "vq_ch_mult" },
                           { vq_keys, "vq_ch_mult=,1", "vq_ch_mult" },
                           { vq_keys, "vq_ch_mult=1,0", "vq_ch_mult" },
                           { vq_keys, "vq_ch_mult=1;2", "vq_ch_mult" },
                           { vq_keys, "vq_ch_mult=1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", "vq_ch_mult" },
                           { vq_keys, "vq_ch_mult=16777216", "channels" },
                           { vq_keys, "vq_ch=48", "vq_groups=32" },
                           { vq_keys, "vq_groups=5", "vq_groups=5" },
                           { vq_keys, "vq_l2_norm=2", "vq_l2_norm" },
                           { vq_keys, "vq_l2_norm=-", "vq_l2_norm" },
                           { vq_keys, "vq_res_blocks=0", "vq_res_blocks" },
                           { vq_keys, "vq_z_channels=-", "vq_z_channels" },
                           { vq_keys, "vq_embed_dim=-", "vq_embed_dim" },
                           { vq_keys, "vq_ch=-", "vq_ch" },
                           { fine_keys, "n_coarse=-", "n_coarse" },
                           { fine_keys, "fine_n_head=3", "fine_n_head=3" },
                           { fine_keys, "fine_n_head=32", "multiple of 4" },
                           { fine_keys, "norm_eps=-", "norm_eps" },
                           { fine_keys, "grid_w=-", "grid_w" } };

static tsar_status read_keys(tsar_config *config, const char *base, const char *change, tsar_error *err)
{
    settings s = { .n = 0 };
    add_keys(&s, base);
    add_keys(&s, change);
    err->text[0] = 0;
    return tsar_config_read(config, lookup, &s, "config", err);
}

static void test_configurations(void)
{
    tsar_config c;
    tsar_error err;
    for (size_t i = 0; i < sizeof bad_configurations / sizeof *bad_configurations; i++) {
        const tsar_status status = read_keys(&c, bad_configurations[i].base, bad_configurations[i].change, &err);
        CHECK(status == TSAR_INPUT && !strncmp(err.text, "config", 6) && strstr(err.text, bad_configurations[i].named), "%s: \"%s\" should name %s",
              bad_configurations[i].change, err.text, bad_configurations[i].named);
    }
    CHECK(read_keys(&c, shuffle_keys, "", &err) == TSAR_OK, "token-shuffle: %s", err.text);
    CHECK(c.rows == 4 && c.columns == 2 && c.tokens == 8 && c.vocab == 32 && c.rope_base == 10000 && c.norm_eps == 1e-5 && c.has_gpt && !c.has_vq, "derived");
    CHECK(c.defaults.cfg == 7.5 && c.defaults.cfg_schedule == TSAR_HALF_LINEAR && c.defaults.top_k == 0 && c.defaults.top_p == 1, "defaults");
    CHECK(read_keys(&c, shuffle_keys, "shuffle=1 shuffle_blocks=- shuffle_hidden=- grid_h=7", &err) == TSAR_OK && c.tokens == 28, "s = 1: %s", err.text);
    CHECK(read_keys(&c, shuffle_keys, "n_coarse=8 default_cfg=3 default_top_k=0 default_top_p=.5 default_cfg_schedule=cosine", &err) == TSAR_OK &&
              c.vocab == 8 && c.defaults.cfg == 3 && c.defaults.top_p == 0.5 && c.defaults.cfg_schedule == TSAR_COSINE,
          "default keys: %s", err.text);
    CHECK(read_keys(&c, c2i_keys, "seed=18446744073709551615", &err) == TSAR_OK && c.seed == UINT64_MAX && c.shuffle == 1 && c.rope_2d, "c2i: %s", err.text);
    CHECK(c.defaults.cfg == 4 && c.defaults.cfg_schedule == TSAR_CONSTANT && c.defaults.top_k == 2000, "c2i defaults");
    CHECK(read_keys(&c, t2i_keys, "", &err) == TSAR_OK && c.defaults.cfg == 7.5 && c.defaults.top_k == 1000, "t2i: %s", err.text);
    CHECK(read_keys(&c, vq_keys, "", &err) == TSAR_OK && c.has_vq && !c.has_gpt && c.vq_levels == 2 && c.vq_factor == 2 && c.vq_groups == 32, "vq: %s",
          err.text);
    CHECK(read_keys(&c, fine_keys, "", &err) == TSAR_OK && c.has_fine && c.vocab == 16, "fine: %s", err.text);
}

/* ---------------------------------------------------------------------------------------------- synthesis and loading */

static tsar_status synth(const char *name, const char *base, const char *change, tsar_dtype dtype, tsar_error *err)
{
    settings s = { .n = 0 };
    add_keys(&s, base);
    add_keys(&s, change);
    err->text[0] = 0;
    return tsar_synth(name, s.keys, s.values, s.n, dtype, err);
}

/* An F32 model, synthesised to `path` and opened as a file; NULL if that fails. */
static tsar_file *synth_file(const char *base, const char *change)
{
    tsar_error err;
    tsar_file *file = NULL;
    const int good = synth(path, base, change, TSAR_F32, &err) == TSAR_OK && tsar_file_open(&file, path, &err) == TSAR_OK;
    CHECK(good, "synth: %s", err.text);
    return file;
}

static void test_synthesis(void)
{
    static const char *const models[] = { shuffle_keys, c2i_keys, t2i_keys, vq_keys, fine_keys };
    static const tsar_dtype dtypes[] = { TSAR_F32, TSAR_BF16, TSAR_F16 };
    tsar_error err;
    tsar_model *model = NULL;
    tsar_file *file = synth_file(c2i_keys, "note=kept");
    static const float expected[4] = { -0.226266146f, -0.278527141f, -0.199466348f, 0.206677198f };
    float first[4] = { 0 };
    CHECK(tsar_synth_word(tsar_synth_key("gpt.tok_embeddings.weight", 1), 0) >> 40 == 6490550, "the first word of gpt.tok_embeddings.weight");
    if (!file) return;
    const char *note = tsar_file_meta(file, "note");
    CHECK(note && !strcmp(note, "kept"), "unknown keys are kept");
    CHECK(tsar_file_read(file, tsar_file_find(file, "gpt.tok_embeddings.weight"), 0, 4, first, &err) == TSAR_OK && !memcmp(first, expected, sizeof first),
          "the first values of SPEC 7");
    tsar_file_close(file);
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        for (size_t d = 0; d < 3; d++) {
            CHECK(synth(path, models[i], "", dtypes[d], &err) == TSAR_OK && synth(other_path, models[i], "", dtypes[d], &err) == TSAR_OK, "synth: %s",
                  err.text);
            CHECK(same_files(path, other_path), "synth gives the same bytes again");
            CHECK(tsar_model_open(&model, path, TSAR_PART_ALL, 1, &err) == TSAR_OK, "open: %s", err.text);
            tsar_model_close(model);
            model = NULL;
        }
    CHECK(synth(path, shuffle_keys, vq_keys, TSAR_F32, &err) == TSAR_OK && tsar_model_open(&model, path, TSAR_PART_ALL, 1, &err) == TSAR_OK, "two parts: %s",
          err.text);
    tsar_model_close(model);
    CHECK(synth(path, c2i_keys, "", TSAR_F64, &err) == TSAR_USAGE, "no F64 synthesis");
    CHECK(tsar_model_open(&model, path, TSAR_PART_ALL, 0, &err) == TSAR_USAGE && tsar_model_open(&model, path, TSAR_PART_ALL, 100000, &err) == TSAR_USAGE,
          "threads");
}

/* What check_weights compares a loaded model with. */
typedef struct {
    tsar_file *file;
    size_t checked;
    int good;
} comparison;

/* A packed matrix, a table and a vector hold the numbers of the file. */
static tsar_status compare_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    comparison *c = context;
    const tsar_tensor *t = tsar_file_find(c->file, weight->name);
    size_t cols = 1;
    for (size_t i = 1; i < weight->rank; i++) cols *= weight->shape[i];
    double *expected = tsar_alloc(weight->shape[0] * cols, sizeof *expected, "test", err), *row = tsar_alloc(cols, sizeof *row, "test", err);
    if (expected && row && tsar_file_read_f64(c->file, t, 0, weight->shape[0] * cols, expected, err) == TSAR_OK)
        for (size_t r = 0; r < weight->rows; r++) {
            const tsar_matrix *m = weight->home;
            if (weight->use == TSAR_AS_TABLE) tsar_table_row(row, weight->home, r);
            for (size_t k = 0; k < cols; k++) {
                float value = 0;
                if (weight->use == TSAR_AS_MATRIX) memcpy(&value, (const char *)m->panels + 4 * ((r / TSAR_PANEL * cols + k) * TSAR_PANEL + r % TSAR_PANEL), 4);
                const double got = weight->use == TSAR_AS_MATRIX   ? (double)value
                                   : weight->use == TSAR_AS_TABLE  ? row[k]
                                   : weight->use == TSAR_AS_VECTOR ? (*(double **)weight->home)[r]
                                                                   : (double)(*(int64_t **)weight->home)[r];
                c->good &= got == expected[(weight->first_row + r) * cols + k];
                c->checked++;
            }
        }
    tsar_free(expected);
    tsar_free(row);
    return TSAR_OK;
}

static void test_loading(void)
{
    static const char *const models[] = { shuffle_keys, c2i_keys, t2i_keys, vq_keys, fine_keys };
    tsar_error err;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        tsar_model *model = NULL;
        comparison c = { NULL, 0, 1 };
        CHECK(synth(path, models[i], "", TSAR_F32, &err) == TSAR_OK && tsar_model_open(&model, path, TSAR_PART_ALL, 1, &err) == TSAR_OK, "open: %s", err.text);
        if (model && tsar_file_open(&c.file, path, &err) == TSAR_OK) tsar_weights(&model->config, model, compare_weight, &c, &err);
        CHECK(c.good && c.checked > 10000, "model %d: %d numbers as in the file", (int)i, (int)c.checked);
        tsar_file_close(c.file);
        tsar_model_close(model);
    }
}

/* A model that takes its tokenizer from a file beside it (vq_file) is, to every reader, the model that holds it. */
static void test_shared_tokenizer(void)
{
    static const struct {
        const char *lender, *key, *named;
    } bad[] = { { vq_keys, "vq_file=absent.tmp.safetensors", "absent.tmp.safetensors" },
                { vq_keys, "vq_file=./test_files.tmp.2.safetensors", "without a directory" },
                { vq_keys, "vq_file=..\\test_files.tmp.2.safetensors", "without a directory" },
                { shuffle_keys, "vq_file=test_files.tmp.2.safetensors", "has none itself" },
                { "vq_ch=32 vq_ch_mult=2,1 vq_res_blocks=1 vq_z_channels=32 vq_embed_dim=8 vq_l2_norm=1 codebook_size=31",
                  "vq_file=test_files.tmp.2.safetensors", "vq.quantize.embedding.weight" } };
    tsar_error err;
    tsar_file *whole = NULL, *part = NULL;
    tsar_model *model = NULL;
    static float a[100000], b[100000];
    CHECK(synth(other_path, shuffle_keys, vq_keys, TSAR_F32, &err) == TSAR_OK, "the whole model: %s", err.text);
    CHECK(synth(path, shuffle_keys, "seed=6 vq_file=test_files.tmp.2.safetensors", TSAR_F32, &err) == TSAR_OK, "without its tokenizer: %s", err.text);
    CHECK(tsar_file_open(&whole, other_path, &err) == TSAR_OK && tsar_file_open(&part, path, &err) == TSAR_OK, "open: %s", err.text);
    if (whole && part) {
        int same = tsar_file_count(whole) == tsar_file_count(part) && tsar_file_meta_count(whole) == tsar_file_meta_count(part);
        for (size_t i = 0; i < tsar_file_count(whole) && same; i++) {
            const tsar_tensor *t = tsar_file_at(whole, i), *u = tsar_file_find(part, t->name);
            same = u && u->rank == t->rank && u->count == t->count && t->count <= 100000 && tsar_file_read(whole, t, 0, t->count, a, &err) == TSAR_OK &&
                   tsar_file_read(part, u, 0, u->count, b, &err) == TSAR_OK && !memcmp(a, b, (size_t)t->count * sizeof *a);
        }
        for (size_t i = 0; i < tsar_file_meta_count(whole) && same; i++) {
            const char *key, *value;
            tsar_file_meta_at(whole, i, &key, &value);
            same = tsar_file_meta(part, key) && !strcmp(tsar_file_meta(part, key), value);
        }
        CHECK(same, "the tensors and keys of the whole model");
    }
    tsar_file_close(whole);
    tsar_file_close(part);
    CHECK(tsar_model_open(&model, path, TSAR_PART_ALL, 1, &err) == TSAR_OK && model->config.has_vq && model->config.has_gpt, "as a model: %s", err.text);
    tsar_model_close(model);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const tsar_status made = synth(other_path, bad[i].lender, "", TSAR_F32, &err) | synth(path, shuffle_keys, bad[i].key, TSAR_F32, &err);
        const tsar_status status = tsar_model_open(&model, path, TSAR_PART_ALL, 1, &err);
        CHECK(made == TSAR_OK && status == TSAR_INPUT && strstr(err.text, bad[i].named), "%s: %s", bad[i].key, err.text);
    }
}

/* A copy of a model file with one thing changed. */
typedef struct {
    const char *drop;   /* this tensor is left out */
    const char *poison; /* this one gets `bad` as its element `at` */
    uint64_t at;
    double bad;
    const char *reshape; /* this one becomes a vector */
    const char *recast;  /* this one gets dtype I16 */
    const char *extra;   /* a tensor I64 of this name is added, of shape [n / 2][2], or [n] where n is odd */
    const int64_t *extra_values;
    size_t n;
    const char *key, *value; /* this metadata is replaced */
} change;

static tsar_status copy_changed(tsar_file *from, const char *to, const change *ch, tsar_error *err)
{
    tsar_writer *writer;
    const size_t extra_shape[2] = { ch->n % 2 ? ch->n : ch->n / 2, 2 };
    tsar_status status = tsar_writer_open(&writer, to, err);
    for (size_t i = 0; i < tsar_file_meta_count(from) && status == TSAR_OK; i++) {
        const char *key, *value;
        tsar_file_meta_at(from, i, &key, &value);
        status = tsar_writer_meta(writer, key, ch->key && !strcmp(ch->key, key) ? ch->value : value, err);
    }
    if (ch->extra && status == TSAR_OK) status = tsar_writer_declare(writer, ch->extra, TSAR_I64, ch->n % 2 ? 1 : 2, extra_shape, err);
    for (size_t i = 0; i < tsar_file_count(from) && status == TSAR_OK; i++) {
        const tsar_tensor *t = tsar_file_at(from, i);
        const size_t count = (size_t)t->count;
        const int recast = ch->recast && !strcmp(ch->recast, t->name), reshape = ch->reshape && !strcmp(ch->reshape, t->name);
        if (!ch->drop || strcmp(ch->drop, t->name))
            status = tsar_writer_declare(writer, t->name, recast ? TSAR_I16 : t->dtype, reshape ? 1 : t->rank, reshape ? &count : t->shape, err);
    }
    for (const tsar_tensor *t; status == TSAR_OK && (t = tsar_writer_next(writer)) != NULL;) {
        const tsar_tensor *source = tsar_file_find(from, t->name);
        void *values = tsar_alloc((size_t)t->count, 8, "test", err);
        if (source)
            status = tsar_file_read(from, source, 0, t->count, values, err);
        else
            memcpy(values, ch->extra_values, ch->n * 8);
        const float bad = (float)ch->bad;
        const int poisoned = ch->poison && !strcmp(ch->poison, t->name);
        const int64_t whole = poisoned && t->dtype == TSAR_I64 ? (int64_t)ch->bad : 0;
        if (poisoned)
            memcpy((char *)values + ch->at * tsar_dtype_size(t->dtype), t->dtype == TSAR_I64 ? (const void *)&whole : &bad, tsar_dtype_size(t->dtype));
        if (status == TSAR_OK) status = tsar_writer_put(writer, values, t->count, err);
        tsar_free(values);
    }
    if (status == TSAR_OK) return tsar_writer_commit(writer, err);
    tsar_writer_abandon(writer);
    return status;
}

static void test_bad_models(void)
{
    static const int64_t merges[] = { 100, 101, 259, 102 }, forward[] = { 100, 101, 260, 102 }, special[] = { 100, 1 }, odd[] = { 100, 101, 102 };
    static int64_t many[84];
    const struct {
        const char *base;
        change ch;
        const char *named;
    } cases[] = {
        { shuffle_keys, { .drop = "gpt.layers.1.ffn_norm.weight" }, "gpt.layers.1.ffn_norm.weight is missing" },
        { shuffle_keys, { .poison = "gpt.norm.weight", .at = 63, .bad = NAN }, "element 63 of tensor gpt.norm.weight" },
        { shuffle_keys, { .poison = "gpt.layers.0.attention.wo.weight", .at = 65, .bad = INFINITY }, "element 65 of tensor gpt.layers.0.attention.wo.weight" },
        { shuffle_keys, { .poison = "gpt.tok_embeddings.weight", .at = 1, .bad = -INFINITY }, "element 1 of tensor gpt.tok_embeddings.weight" },
        { shuffle_keys, { .poison = "gpt.output.weight", .at = 300 * 64 + 5, .bad = NAN }, "element 19205 of tensor gpt.output.weight" },
        { shuffle_keys, { .reshape = "gpt.output.weight" }, "shape [21248], the configuration needs [332, 64]" },
        { shuffle_keys, { .recast = "gpt.layers.0.attention.wo.weight" }, "dtype I16" },
        { shuffle_keys, { .extra = "gpt.layers.2.attention.wo.weight", .extra_values = merges, .n = 4 }, "gpt.layers.2.attention.wo.weight does not belong" },
        { shuffle_keys, { .extra = "vq.x", .extra_values = merges, .n = 4 }, "vq.x does not belong" },
        { shuffle_keys, { .key = "dim", .value = "128" }, "the configuration needs" },
        { shuffle_keys, { .key = "n_layer", .value = "4096" }, "gpt.layers.2.attention_norm.weight is missing" },
        { shuffle_keys, { .key = "n_layer", .value = "4097" }, "at most 4096" },
        { shuffle_keys, { .key = "n_layer", .value = "1" }, "does not belong" },
        { shuffle_keys, { .extra = "tokenizer.merges", .extra_values = forward, .n = 4 }, "merge 1" },
        { shuffle_keys, { .extra = "tokenizer.merges", .extra_values = special, .n = 2 }, "merge 0" },
        { shuffle_keys, { .extra = "tokenizer.merges", .extra_values = odd, .n = 3 }, "shape" },
        { shuffle_keys, { .extra = "tokenizer.merges", .extra_values = many, .n = 84 }, "42 merges" },
        { c2i_keys, { .extra = "tokenizer.merges", .extra_values = merges, .n = 4 }, "llamagen-c2i" },
        { t2i_keys, { .key = "cond_tokens", .value = "7" }, "gpt.cls_embedding.uncond_embedding has shape [6, 24]" },
        { vq_keys, { .poison = "vq.decoder.conv_out.bias", .at = 2, .bad = NAN }, "element 2 of tensor vq.decoder.conv_out.bias" },
        { vq_keys, { .key = "vq_res_blocks", .value = "4096" }, "is missing" },
        { vq_keys, { .key = "vq_res_blocks", .value = "16777216" }, "at most 4096" },
        { fine_keys, { .poison = "ctf.cluster_of", .at = 255, .bad = 16 }, "element 255 of tensor ctf.cluster_of is 16" },
        { fine_keys, { .poison = "ctf.cluster_of", .at = 0, .bad = -1 }, "ctf.cluster_of is -1" },
        { fine_keys, { .drop = "ctf.cluster_of" }, "ctf.cluster_of is missing" }
    };
    tsar_error err;
    tsar_model *model = NULL;
    tsar_file *file;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if ((file = synth_file(cases[i].base, "")) == NULL) continue;
        CHECK(copy_changed(file, other_path, &cases[i].ch, &err) == TSAR_OK, "copy: %s", err.text);
        tsar_file_close(file);
        const tsar_status status = tsar_model_open(&model, other_path, TSAR_PART_ALL, 1, &err);
        CHECK(status == TSAR_INPUT && strstr(err.text, other_path) && strstr(err.text, cases[i].named), "\"%s\" should say: %s", err.text, cases[i].named);
        tsar_model_close(model);
    }
    /* What is not needed is not judged: rows of the head for text ids, rows of a longer uncond_embedding, other tensors. */
    const change harmless = { .poison = "gpt.output.weight", .at = 299 * 64, .bad = NAN, .extra = "notes", .extra_values = merges, .n = 4 };
    const change fewer = { .key = "cond_tokens", .value = "4" };
    for (int i = 0; i < 2; i++) {
        if ((file = synth_file(i ? t2i_keys : shuffle_keys, "")) == NULL) continue;
        CHECK(copy_changed(file, other_path, i ? &fewer : &harmless, &err) == TSAR_OK && tsar_model_open(&model, other_path, TSAR_PART_ALL, 1, &err) == TSAR_OK,
              "%s", err.text);
        CHECK(i == 0 || (model && model->uncond_embedding.rows == 4), "uncond_embedding is cut to cond_tokens");
        tsar_file_close(file);
        tsar_model_close(model);
        model = NULL;
    }
}

/* -------------------------------------------------------------------------------------------------------------- text */

#define N_MERGES 200

/* The textbook: for each rank in order, every occurrence from the left. ids [n]; returns their new number. */
static size_t merge_naively(int64_t *ids, size_t n, const int64_t *merges, size_t n_merges)
{
    for (size_t r = 0; r < n_merges; r++) {
        size_t used = 0;
        for (size_t i = 0; i < n; i++)
            if (i + 1 < n && ids[i] == merges[2 * r] && ids[i + 1] == merges[2 * r + 1]) {
                ids[used++] = 259 + (int64_t)r;
                i++;
            } else {
                ids[used++] = ids[i];
            }
        n = used;
    }
    return n;
}

static void check_text(tsar_model *model, const char *prompt, size_t length)
{
    tsar_error err = { "" };
    CHECK(tsar_bpe_open(&model->bpe, 259 + model->bpe.n_merges, "test", &err) == TSAR_OK, "the index: %s", err.text);
    int64_t *ids = NULL, *naive = tsar_alloc(length, sizeof *naive, "test", &err);
    char *back = NULL;
    size_t n = 0;
    if (!CHECK(tsar_text_encode(model, prompt, &ids, &n, &err) == TSAR_OK, "encode: %s", err.text) || !naive) {
        tsar_free(naive);
        return;
    }
    for (size_t i = 0; i < length; i++) naive[i] = 3 + (unsigned char)prompt[i];
    const size_t expected = merge_naively(naive, length, model->bpe.merges, model->bpe.n_merges);
    CHECK(n == expected + 2 && ids[0] == TSAR_BOS && ids[n - 1] == TSAR_SOI && !memcmp(ids + 1, naive, expected * sizeof *ids), "ids of %d bytes", (int)length);
    CHECK(tsar_text_decode(model, ids, n, &back, &err) == TSAR_OK && !strcmp(back, prompt), "decode: %s", err.text);
    tsar_free(ids);
    tsar_free(naive);
    tsar_free(back);
    tsar_bpe_unindex(&model->bpe);
}

static void test_text(void)
{
    static int64_t merges[2 * N_MERGES];
    static char prompt[100001];
    tsar_model model = { .config = { .arch = TSAR_TOKEN_SHUFFLE, .text_template = TSAR_TEMPLATE_TSAR, .text_vocab = 259 + N_MERGES },
                         .bpe = { .merges = merges, .n_merges = N_MERGES } };
    tsar_error err;
    int64_t *ids;
    char *text;
    size_t n;
    for (int round = 0; round < 300; round++) {
        const size_t letters = 1 + random_below(round % 3 ? 4 : 255), length = random_below(400);
        for (size_t i = 0; i < 2 * N_MERGES; i++) { /* duplicates of earlier pairs among them */
            const size_t made = i / 2, id = random_below(letters + made);
            merges[i] = id < letters ? 3 + 1 + (int64_t)id : 259 + (int64_t)(id - letters);
        }
        for (size_t i = 0; i < length; i++) prompt[i] = (char)(unsigned char)(1 + random_below(letters));
        prompt[length] = 0;
        check_text(&model, prompt, length);
    }
    memset(prompt, 1, 100000);
    check_text(&model, prompt, 100000);
    model.bpe.merges = NULL;
    model.bpe.n_merges = 0;
    check_text(&model, "plain bytes \xC3\xA4 \xFF", strlen("plain bytes \xC3\xA4 \xFF"));
    check_text(&model, "", 0);
    model.config.text_vocab = 258;
    CHECK(tsar_text_encode(&model, "a", &ids, &n, &err) == TSAR_INPUT && strstr(err.text, "no tokenizer"), "no index: %s", err.text);
    CHECK(tsar_bpe_open(&model.bpe, 258, "test", &err) == TSAR_OK, "the index: %s", err.text);
    CHECK(tsar_text_encode(&model, "a", &ids, &n, &err) == TSAR_INPUT && strstr(err.text, "--prompt-ids"), "too small: %s", err.text);
    tsar_bpe_unindex(&model.bpe);
    model.config.text_template = TSAR_TEMPLATE_NONE;
    CHECK(tsar_text_encode(&model, "a", &ids, &n, &err) == TSAR_INPUT && strstr(err.text, "--class"), "no text: %s", err.text);

    for (size_t i = 0; i < 2 * N_MERGES; i++) /* doublings: the last id stands for 2^200 bytes */
        merges[i] = i < 2 ? 3 : 258 + (int64_t)(i / 2);
    model.bpe.merges = merges;
    model.bpe.n_merges = N_MERGES;
    const int64_t bomb = 258 + N_MERGES, small[4] = { TSAR_BOS, 259 + 2, 3 + 'x', TSAR_EOI }, beyond = 259 + N_MERGES, negative = -1;
    CHECK(tsar_text_decode(&model, &bomb, 1, &text, &err) == TSAR_INPUT, "a bomb: %s", err.text);
    CHECK(tsar_text_decode(&model, &beyond, 1, &text, &err) == TSAR_INPUT && tsar_text_decode(&model, &negative, 1, &text, &err) == TSAR_INPUT,
          "ids out of range");
    CHECK(tsar_text_decode(&model, small, 4, &text, &err) == TSAR_OK && text && !memcmp(text, "\0\0\0\0\0\0\0\0x", 10), "specials skipped");
    tsar_free(text);
}

int main(void)
{
    test_round_trip();
    test_hostile_headers();
    test_damaged_files();
    test_random_damage();
    test_output();
    test_configurations();
    test_synthesis();
    test_loading();
    test_shared_tokenizer();
    test_bad_models();
    test_text();
    remove(path);
    remove(other_path);
    return test_end();
}
