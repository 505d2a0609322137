/* The pickle in a PyTorch checkpoint; torch.c reads the file around it.
 *
 * A bounded interpreter of the pickle opcodes that torch.save writes with protocols 1 to 5 (the format is described in CPython's
 * pickletools). It builds plain values and runs nothing: the short table below gives the few names of classes and functions that occur in
 * weights a meaning here. Any other name becomes an inert value, which swallows what it is given and knows what it was called; it
 * is refused, by that name, only where a weight would need it.
 *
 * Bounds: every opcode costs at least one byte of the file and makes at most one value; values take at most `limit` bytes in all,
 * the stack MAX_STACK entries, a string MAX_STRING bytes; a memo index is below the number of bytes read. Values are shared, not copied, and are never
 * walked recursively, so that a list that holds itself, or itself ten times over, costs nothing. */
#include "files.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_STACK = 1 << 20, MAX_STRING = 1 << 20, MAX_GLOBAL = 256, MAX_DIMENSIONS = 64, ARENA = 1 << 16, READ_AHEAD = 4096 };

/* --------------------------------------------------------------------------------------------------- the known globals */

enum { STORAGE, DTYPE, DICT, REBUILD, REBUILD_DTYPE, REBUILD_TYPE, FIRST_ARGUMENT, INERT };

/* Bytes of an element and its name stand behind storages that no tensor of a model file can have. */
static const struct {
    const char *name;
    int meaning;
    tsar_dtype dtype;
    size_t foreign_size;
    const char *foreign;
} GLOBALS[] = {
    { "torch.FloatStorage", STORAGE, TSAR_F32, 0, NULL },
    { "torch.DoubleStorage", STORAGE, TSAR_F64, 0, NULL },
    { "torch.HalfStorage", STORAGE, TSAR_F16, 0, NULL },
    { "torch.BFloat16Storage", STORAGE, TSAR_BF16, 0, NULL },
    { "torch.LongStorage", STORAGE, TSAR_I64, 0, NULL },
    { "torch.IntStorage", STORAGE, TSAR_I32, 0, NULL },
    { "torch.ShortStorage", STORAGE, TSAR_I16, 0, NULL },
    { "torch.CharStorage", STORAGE, TSAR_I8, 0, NULL },
    { "torch.ByteStorage", STORAGE, TSAR_U8, 0, NULL },
    { "torch.BoolStorage", STORAGE, TSAR_BOOL, 0, NULL },
    { "torch.ComplexFloatStorage", STORAGE, TSAR_U8, 8, "complex64" },
    { "torch.ComplexDoubleStorage", STORAGE, TSAR_U8, 16, "complex128" },
    { "torch.QInt8Storage", STORAGE, TSAR_U8, 1, "qint8" },
    { "torch.QUInt8Storage", STORAGE, TSAR_U8, 1, "quint8" },
    { "torch.QInt32Storage", STORAGE, TSAR_U8, 4, "qint32" },
    { "torch.UntypedStorage", STORAGE, TSAR_U8, 0, NULL },
    { "torch.storage.UntypedStorage", STORAGE, TSAR_U8, 0, NULL },
    { "torch.float32", DTYPE, TSAR_F32, 0, NULL },
    { "torch.float64", DTYPE, TSAR_F64, 0, NULL },
    { "torch.float16", DTYPE, TSAR_F16, 0, NULL },
    { "torch.bfloat16", DTYPE, TSAR_BF16, 0, NULL },
    { "torch.int64", DTYPE, TSAR_I64, 0, NULL },
    { "torch.int32", DTYPE, TSAR_I32, 0, NULL },
    { "torch.int16", DTYPE, TSAR_I16, 0, NULL },
    { "torch.int8", DTYPE, TSAR_I8, 0, NULL },
    { "torch.uint64", DTYPE, TSAR_U64, 0, NULL },
    { "torch.uint32", DTYPE, TSAR_U32, 0, NULL },
    { "torch.uint16", DTYPE, TSAR_U16, 0, NULL },
    { "torch.uint8", DTYPE, TSAR_U8, 0, NULL },
    { "torch.bool", DTYPE, TSAR_BOOL, 0, NULL },
    { "collections.OrderedDict", DICT, TSAR_U8, 0, NULL },
    { "torch._utils._rebuild_tensor", REBUILD, TSAR_U8, 0, NULL },
    { "torch._utils._rebuild_tensor_v2", REBUILD, TSAR_U8, 0, NULL },
    { "torch._utils._rebuild_tensor_v3", REBUILD_DTYPE, TSAR_U8, 0, NULL },    /* argument 6 is the dtype */
    { "torch._tensor._rebuild_from_type_v2", REBUILD_TYPE, TSAR_U8, 0, NULL }, /* (function, class, its arguments, attributes) */
    { "torch._utils._rebuild_parameter", FIRST_ARGUMENT, TSAR_U8, 0, NULL },   /* (tensor, requires_grad, hooks) */
    { "torch._utils._rebuild_parameter_with_state", FIRST_ARGUMENT, TSAR_U8, 0, NULL },
    { "torch.nn.parameter.Parameter", FIRST_ARGUMENT, TSAR_U8, 0, NULL },
    { "torch.Size", FIRST_ARGUMENT, TSAR_U8, 0, NULL },
    { "torch.Tensor", INERT, TSAR_U8, 0, NULL },
    { "torch.device", INERT, TSAR_U8, 0, NULL },
    { "argparse.Namespace", INERT, TSAR_U8, 0, NULL },
    { "_codecs.encode", INERT, TSAR_U8, 0, NULL },
    { "__builtin__.set", INERT, TSAR_U8, 0, NULL },
    { "builtins.set", INERT, TSAR_U8, 0, NULL },
    { "__builtin__.bytearray", INERT, TSAR_U8, 0, NULL },
    { "builtins.bytearray", INERT, TSAR_U8, 0, NULL },
};

/* -------------------------------------------------------------------------------------------------------------- memory */

struct tsar_slab {
    struct tsar_slab *next;
    size_t used, size;
}; /* its bytes follow */

static tsar_status charge(tsar_pickle *pickle, const tsar_source *source, uint64_t count, tsar_error *err)
{
    if (count > pickle->limit - pickle->used)
        return tsar_fail(err, TSAR_INPUT, "%s: its pickle would take more than %" PRIu64 " bytes of memory; no checkpoint does", source->path, pickle->limit);
    pickle->used += count;
    return TSAR_OK;
}

/* count zeroed bytes that live as long as the pickle. */
static tsar_status grab(tsar_pickle *pickle, const tsar_source *source, size_t count, void *out, tsar_error *err)
{
    size_t rounded = (count + 15) / 16 * 16, head = (sizeof(struct tsar_slab) + 15) / 16 * 16;
    struct tsar_slab *slab = pickle->slabs;
    tsar_status status = charge(pickle, source, rounded, err);
    if (status != TSAR_OK) return status;
    if (!slab || slab->size - slab->used < rounded) {
        size_t size = rounded > ARENA ? rounded : ARENA;
        if (!(slab = tsar_alloc(head + size, 1, "a pickle's values", err))) return TSAR_ROOM;
        slab->size = size;
        slab->next = pickle->slabs;
        pickle->slabs = slab;
    }
    void *memory = (char *)slab + head + slab->used;
    slab->used += rounded;
    memcpy(out, &memory, sizeof memory);
    return TSAR_OK;
}

void tsar_pickle_close(tsar_pickle *pickle)
{
    while (pickle->slabs) {
        struct tsar_slab *next = pickle->slabs->next;
        tsar_free(pickle->slabs);
        pickle->slabs = next;
    }
    memset(pickle, 0, sizeof *pickle);
}

/* --------------------------------------------------------------------------------------------------------- the machine */

typedef struct {
    tsar_pickle *pickle;
    tsar_source *source;
    tsar_error *err;
    uint64_t start, offset, end; /* the next byte to read; at most `end` */
    uint8_t read[READ_AHEAD];    /* bytes from offset - filled + at onwards are here */
    size_t at, filled;
    tsar_value **stack, **memo;
    size_t depth, stack_room, memo_room;
} machine;

static tsar_status bad(const machine *m, const char *what)
{
    return tsar_fail(m->err, TSAR_INPUT, "%s: damaged pickle near byte %" PRIu64 ": %s", m->source->path, m->offset - (m->filled - m->at), what);
}

/* The next `count` bytes. */
static tsar_status take(machine *m, void *out, size_t count)
{
    uint8_t *bytes = out;
    while (count > 0) {
        if (m->at == m->filled) {
            uint64_t left = m->end - m->offset;
            if (left == 0) return bad(m, "it ends before its last opcode");
            m->at = 0;
            m->filled = left < READ_AHEAD ? (size_t)left : READ_AHEAD;
            tsar_status status = tsar_source_read(m->source, m->offset, m->read, m->filled, m->err);
            if (status != TSAR_OK) return status;
            m->offset += m->filled;
        }
        size_t part = m->filled - m->at < count ? m->filled - m->at : count;
        memcpy(bytes, m->read + m->at, part);
        m->at += part;
        bytes += part;
        count -= part;
    }
    return TSAR_OK;
}

/* A length of 1, 4 or 8 bytes. */
static tsar_status take_length(machine *m, size_t width, uint64_t *length)
{
    uint8_t bytes[8] = { 0 };
    tsar_status status = take(m, bytes, width);
    *length = tsar_get_u64(bytes);
    return status;
}

/* Room for `wanted` entries in the stack, the memo, a list or a dictionary, which grow by doubling. */
static tsar_status grow(machine *m, tsar_value ***array, size_t *room, size_t wanted)
{
    if (wanted <= *room) return TSAR_OK;
    if (wanted > m->pickle->limit / sizeof **array) return charge(m->pickle, m->source, UINT64_MAX, m->err);
    size_t larger = *room ? *room : 4;
    while (larger < wanted) larger *= 2;
    tsar_value **copy = NULL;
    tsar_status status = grab(m->pickle, m->source, larger * sizeof *copy, &copy, m->err);
    if (status != TSAR_OK) return status;
    if (*room) memcpy(copy, *array, *room * sizeof *copy);
    *array = copy;
    *room = larger;
    return TSAR_OK;
}

static tsar_status push(machine *m, tsar_value *value)
{
    if (m->depth == MAX_STACK) return bad(m, "its stack grows beyond all checkpoints");
    tsar_status status = grow(m, &m->stack, &m->stack_room, m->depth + 1);
    if (status == TSAR_OK) m->stack[m->depth++] = value;
    return status;
}

/* A new value on the stack; *out may be NULL if it needs no more than its kind. */
static tsar_status push_new(machine *m, tsar_pickle_kind kind, tsar_value **out)
{
    tsar_value *value = NULL;
    tsar_status status = grab(m->pickle, m->source, sizeof *value, &value, m->err);
    if (status != TSAR_OK) return status;
    value->kind = kind;
    if (out) *out = value;
    return push(m, value);
}

static tsar_status push_integer(machine *m, int64_t integer)
{
    tsar_value *value = NULL;
    tsar_status status = push_new(m, TSAR_P_INTEGER, &value);
    if (status == TSAR_OK) value->integer = integer;
    return status;
}

static tsar_status pop(machine *m, tsar_value **value)
{
    if (m->depth == 0 || m->stack[m->depth - 1]->kind == TSAR_P_MARK) return bad(m, "an opcode finds too few values on the stack");
    *value = m->stack[--m->depth];
    return TSAR_OK;
}

/* The values above the last mark, which is removed with them: they stay readable until the next push. */
static tsar_status pop_mark(machine *m, tsar_value ***items, size_t *count)
{
    *items = NULL;
    *count = 0;
    size_t at = m->depth;
    while (at > 0 && m->stack[at - 1]->kind != TSAR_P_MARK) at--;
    if (at == 0) return bad(m, "an opcode finds no mark on the stack");
    *items = m->stack + at;
    *count = m->depth - at;
    m->depth = at - 1;
    return TSAR_OK;
}

/* ------------------------------------------------------------------------------------------------ numbers and strings */

static int64_t to_signed(uint64_t bits) { return bits <= INT64_MAX ? (int64_t)bits : -(int64_t)(UINT64_MAX - bits) - 1; }

/* `width` bytes, little-endian, two's complement if `is_signed`. */
static tsar_status load_integer(machine *m, size_t width, int is_signed)
{
    uint8_t bytes[8] = { 0 };
    tsar_status status = take(m, bytes, width);
    if (status != TSAR_OK) return status;
    if (is_signed && width > 0 && (bytes[width - 1] & 0x80)) memset(bytes + width, 0xFF, 8 - width);
    return push_integer(m, to_signed(tsar_get_u64(bytes)));
}

static tsar_status skip(machine *m, uint64_t count)
{
    uint8_t bytes[256];
    tsar_status status = TSAR_OK;
    for (; status == TSAR_OK && count > 0; count -= count < sizeof bytes ? count : sizeof bytes)
        status = take(m, bytes, count < sizeof bytes ? (size_t)count : sizeof bytes);
    return status;
}

/* INT and LONG of protocol 1: a line of decimal digits, "12", "-3L"; "01" and "00" are truth values. What exceeds 64 bits has no meaning here. */
static tsar_status load_line_integer(machine *m)
{
    uint64_t value = 0;
    int negative = 0, large = 0;
    for (size_t n = 0; n < MAX_GLOBAL; n++) {
        uint8_t c = 0;
        tsar_status status = take(m, &c, 1);
        if (status != TSAR_OK) return status;
        if (c == '\n' && n > 0) return large ? push_new(m, TSAR_P_INERT, NULL) : push_integer(m, negative ? -(int64_t)value : (int64_t)value);
        if (c == '-' && n == 0)
            negative = 1;
        else if (c >= '0' && c <= '9') {
            large |= value > (INT64_MAX - 9) / 10;
            if (!large) value = value * 10 + (uint64_t)(c - '0');
        } else if (c != 'L')
            return bad(m, "a number in text holds something else than digits");
    }
    return bad(m, "a number in text is longer than any in a checkpoint");
}

/* LONG1 and LONG4: numbers of any size; those beyond 64 bits have no meaning here. */
static tsar_status load_long(machine *m, size_t width)
{
    uint64_t length;
    tsar_status status = take_length(m, width, &length);
    if (status != TSAR_OK) return status;
    if (length <= 8) return load_integer(m, (size_t)length, 1);
    if (length > MAX_STRING) return bad(m, "a number is longer than any in a checkpoint");
    status = skip(m, length);
    return status != TSAR_OK ? status : push_new(m, TSAR_P_INERT, NULL);
}

static tsar_status load_text(machine *m, size_t width)
{
    uint64_t length;
    tsar_value *value = NULL;
    char *text = NULL;
    tsar_status status = take_length(m, width, &length);
    if (status != TSAR_OK) return status;
    if (length > MAX_STRING) return bad(m, "a string is longer than any in a checkpoint");
    status = grab(m->pickle, m->source, (size_t)length + 1, &text, m->err);
    if (status == TSAR_OK) status = take(m, text, (size_t)length);
    if (status != TSAR_OK) return status;
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)text[i] < 32) /* no name of a tensor; it could be taken for a shorter one, or forge lines in a message */
            return push_new(m, TSAR_P_INERT, NULL);
    status = push_new(m, TSAR_P_TEXT, &value);
    if (status == TSAR_OK) value->text = text;
    return status;
}

/* Bytes are never needed. */
static tsar_status load_bytes(machine *m, size_t width)
{
    uint64_t length;
    tsar_status status = take_length(m, width, &length);
    if (status == TSAR_OK) status = skip(m, length);
    return status != TSAR_OK ? status : push_new(m, TSAR_P_INERT, NULL);
}

static tsar_status load_float(machine *m)
{
    tsar_status status = skip(m, 8);
    return status != TSAR_OK ? status : push_new(m, TSAR_P_INERT, NULL);
}

/* ----------------------------------------------------------------------------------------------------------- containers */

/* A copy of `count` values in a new tuple or list. */
static tsar_status push_items(machine *m, tsar_pickle_kind kind, tsar_value **items, size_t count)
{
    tsar_value **copy = NULL, *value = NULL;
    tsar_status status = TSAR_OK;
    if (count > 0 && !(status = grab(m->pickle, m->source, count * sizeof *copy, &copy, m->err))) memcpy(copy, items, count * sizeof *copy);
    if (status == TSAR_OK) status = push_new(m, kind, &value);
    if (status == TSAR_OK) {
        value->items = copy;
        value->count = value->room = count;
    }
    return status;
}

static tsar_status load_marked(machine *m, tsar_pickle_kind kind)
{
    tsar_value **items;
    size_t count;
    tsar_status status = pop_mark(m, &items, &count);
    if (status == TSAR_OK && kind == TSAR_P_DICT && count % 2) return bad(m, "a dictionary has a key without a value");
    if (status == TSAR_OK && kind == TSAR_P_INERT) return push_new(m, kind, NULL); /* a frozenset */
    return status != TSAR_OK ? status : push_items(m, kind, items, count);
}

/* TUPLE1, TUPLE2, TUPLE3. */
static tsar_status load_tuple(machine *m, size_t count)
{
    tsar_value *items[3] = { NULL };
    tsar_status status = TSAR_OK;
    for (size_t i = count; status == TSAR_OK && i-- > 0;) status = pop(m, &items[i]);
    return status != TSAR_OK ? status : push_items(m, TSAR_P_TUPLE, items, count);
}

/* Appends to the list or dictionary on top of the stack. An inert object swallows what it is given, but keeps pairs, as a dictionary of
 * another class (a defaultdict, an EasyDict) may hold the weights. */
static tsar_status extend(machine *m, tsar_pickle_kind kind, tsar_value **items, size_t count)
{
    tsar_value *into = m->depth ? m->stack[m->depth - 1] : NULL;
    const int inert = into && into->kind == TSAR_P_INERT;
    if (inert && (kind != TSAR_P_DICT || count % 2)) return TSAR_OK;
    if (!into || (into->kind != kind && !inert) || (kind == TSAR_P_DICT && count % 2)) return bad(m, "an opcode adds items to what cannot hold them");
    tsar_status status = grow(m, &into->items, &into->room, into->count + count);
    if (status == TSAR_OK && count) memcpy(into->items + into->count, items, count * sizeof *items);
    if (status == TSAR_OK) into->count += count;
    return status;
}

static tsar_status extend_marked(machine *m, tsar_pickle_kind kind)
{
    tsar_value **items;
    size_t count;
    tsar_status status = pop_mark(m, &items, &count);
    return status != TSAR_OK ? status : extend(m, kind, items, count);
}

/* APPEND (one item) and SETITEM (key and value). */
static tsar_status extend_by(machine *m, tsar_pickle_kind kind, size_t count)
{
    tsar_value *items[2] = { NULL };
    tsar_status status = TSAR_OK;
    for (size_t i = count; status == TSAR_OK && i-- > 0;) status = pop(m, &items[i]);
    return status != TSAR_OK ? status : extend(m, kind, items, count);
}

static tsar_status put_memo(machine *m, uint64_t index)
{
    if (m->depth == 0 || m->stack[m->depth - 1]->kind == TSAR_P_MARK) return bad(m, "an opcode remembers a value, but there is none");
    if (index > m->offset - m->start) return bad(m, "a memo index is larger than the pickle");
    tsar_status status = grow(m, &m->memo, &m->memo_room, (size_t)index + 1);
    if (status == TSAR_OK) m->memo[index] = m->stack[m->depth - 1];
    return status;
}

static tsar_status get_memo(machine *m, uint64_t index)
{
    if (index >= m->memo_room || !m->memo[index]) return bad(m, "an opcode recalls a value that was never remembered");
    return push(m, m->memo[index]);
}

/* MEMOIZE numbers values in the order in which they are remembered. */
static tsar_status memoize(machine *m, uint64_t *remembered) { return put_memo(m, (*remembered)++); }

/* ----------------------------------------------------------------------------------- globals, objects and their storages */

/* Remembers a name without a meaning here, once, for the note about it. */
static void tell_stranger(tsar_pickle *pickle, tsar_value *value)
{
    for (const tsar_value *known = pickle->strangers; known; known = known->next)
        if (strcmp(known->text, value->text) == 0) return;
    if (pickle->n_strangers == TSAR_STRANGERS) return;
    value->next = pickle->strangers;
    pickle->strangers = value;
    pickle->n_strangers++;
}

static tsar_status push_global(machine *m, const char *module, const char *name)
{
    char full[2 * MAX_GLOBAL + 2], *copy = NULL;
    tsar_value *value = NULL;
    size_t length = strlen(module), i = 0;
    if (length >= MAX_GLOBAL || strlen(name) >= MAX_GLOBAL) return bad(m, "the name of a global is longer than 255 bytes");
    memcpy(full, module, length);
    full[length] = '.';
    memcpy(full + length + 1, name, strlen(name) + 1);
    for (char *c = full; *c; c++)
        if (*c < 32 || *c > 126) *c = '?'; /* the name ends up on a terminal */
    tsar_status status = push_new(m, TSAR_P_GLOBAL, &value);
    if (status != TSAR_OK) return status;
    while (i < sizeof GLOBALS / sizeof *GLOBALS && strcmp(GLOBALS[i].name, full) != 0) i++;
    value->meaning = INERT;
    if (i < sizeof GLOBALS / sizeof *GLOBALS) {
        value->meaning = GLOBALS[i].meaning;
        value->dtype = GLOBALS[i].dtype;
        value->size = GLOBALS[i].foreign ? GLOBALS[i].foreign_size : tsar_dtype_size(value->dtype);
        value->text = GLOBALS[i].name;
        value->foreign = GLOBALS[i].foreign;
        return TSAR_OK;
    }
    status = grab(m->pickle, m->source, strlen(full) + 1, &copy, m->err);
    if (status != TSAR_OK) return status;
    memcpy(copy, full, strlen(full) + 1);
    value->text = copy;
    tell_stranger(m->pickle, value);
    return TSAR_OK;
}

/* GLOBAL: module and name, a line each. */
static tsar_status load_global(machine *m)
{
    char lines[2][MAX_GLOBAL];
    for (int i = 0; i < 2; i++)
        for (size_t n = 0;; n++) {
            if (n == MAX_GLOBAL) return bad(m, "the name of a global is longer than 255 bytes");
            tsar_status status = take(m, &lines[i][n], 1);
            if (status != TSAR_OK) return status;
            if (lines[i][n] == '\0') return bad(m, "the name of a global holds a zero byte");
            if (lines[i][n] == '\n') {
                lines[i][n] = '\0';
                break;
            }
        }
    return push_global(m, lines[0], lines[1]);
}

static tsar_status load_stack_global(machine *m)
{
    tsar_value *name = NULL, *module = NULL;
    tsar_status status = pop(m, &name);
    if (status == TSAR_OK) status = pop(m, &module);
    if (status != TSAR_OK) return status;
    if (name->kind != TSAR_P_TEXT || module->kind != TSAR_P_TEXT) return bad(m, "the name of a global is no string");
    return push_global(m, module->text, name->text);
}

/* A value without a meaning here; `name` is what it was called in the file. */
static tsar_status push_inert(machine *m, const char *name)
{
    tsar_value *value = NULL;
    tsar_status status = push_new(m, TSAR_P_INERT, &value);
    if (status == TSAR_OK) value->text = name;
    return status;
}

/* Shape or strides: few, so that a list which many tensors share costs little each time. */
static int all_integers(const tsar_value *tuple)
{
    if ((tuple->kind != TSAR_P_TUPLE && tuple->kind != TSAR_P_LIST) || tuple->count > MAX_DIMENSIONS) return 0;
    for (size_t i = 0; i < tuple->count; i++)
        if (tuple->items[i]->kind != TSAR_P_INTEGER) return 0;
    return 1;
}

/* (storage, first element, shape, strides, ...): becomes a tensor. Whether it fits its storage is checked later, when its name is known. */
static tsar_status rebuild_tensor(machine *m, const tsar_value *arguments, int own_dtype)
{
    tsar_value *value = NULL, **items = arguments->items;
    size_t count = arguments->count;
    if (count > 0 && items[0]->kind == TSAR_P_INERT) return push_inert(m, items[0]->text);
    if (count < 4 || items[0]->kind != TSAR_P_STORAGE || items[1]->kind != TSAR_P_INTEGER || !all_integers(items[2]) || !all_integers(items[3]))
        return bad(m, "a tensor is not made of storage, offset, shape and strides, or has more than 64 dimensions");
    if (own_dtype && (count < 7 || items[6]->kind != TSAR_P_GLOBAL)) return bad(m, "a tensor has no dtype");
    if (own_dtype && items[6]->meaning != DTYPE) return push_inert(m, items[6]->text);
    size_t metadata = own_dtype ? 7 : 6;
    if (count > metadata && (items[metadata]->kind != TSAR_P_DICT || items[metadata]->count > 0) && items[metadata]->kind != TSAR_P_NONE)
        return push_inert(m, "a conjugate or negative view (save it with .resolve_conj().resolve_neg())");
    tsar_status status = push_new(m, TSAR_P_TENSOR, &value);
    if (status != TSAR_OK) return status;
    value->items = items;
    value->count = 4;
    value->dtype = own_dtype ? items[6]->dtype : items[0]->dtype;
    value->size = own_dtype ? items[6]->size : items[0]->size;
    value->foreign = own_dtype ? NULL : items[0]->foreign;
    return TSAR_OK;
}

/* OrderedDict() or OrderedDict([[key, value], ...]). */
static tsar_status make_dict(machine *m, const tsar_value *arguments)
{
    tsar_status status = push_new(m, TSAR_P_DICT, NULL);
    if (status != TSAR_OK || arguments->count == 0) return status;
    const tsar_value *pairs = arguments->items[0];
    if (pairs->kind == TSAR_P_DICT) return extend(m, TSAR_P_DICT, pairs->items, pairs->count);
    if (pairs->kind != TSAR_P_LIST && pairs->kind != TSAR_P_TUPLE) return bad(m, "an OrderedDict is made of something else than pairs");
    for (size_t i = 0; status == TSAR_OK && i < pairs->count; i++) {
        if (pairs->items[i]->count != 2 || (pairs->items[i]->kind != TSAR_P_LIST && pairs->items[i]->kind != TSAR_P_TUPLE))
            return bad(m, "an OrderedDict is made of something else than pairs");
        status = extend(m, TSAR_P_DICT, pairs->items[i]->items, 2);
    }
    return status;
}

/* What a call gives: REDUCE, NEWOBJ. Nothing is called: known names have a meaning, all others give an inert value. */
static tsar_status call(machine *m, const tsar_value *callable, const tsar_value *arguments)
{
    if (callable->kind == TSAR_P_INERT) return push_inert(m, callable->text);
    if (callable->kind != TSAR_P_GLOBAL || arguments->kind != TSAR_P_TUPLE) return bad(m, "it calls what is no function");
    if (callable->meaning == REBUILD_TYPE) { /* a tensor with attributes: the call it stands for */
        if (arguments->count < 3 || arguments->items[0]->kind != TSAR_P_GLOBAL || arguments->items[2]->kind != TSAR_P_TUPLE)
            return bad(m, "a tensor with attributes is not made of a function and its arguments");
        callable = arguments->items[0];
        arguments = arguments->items[2];
    }
    switch (callable->meaning) {
    case DICT: return make_dict(m, arguments);
    case REBUILD:
    case REBUILD_DTYPE: return rebuild_tensor(m, arguments, callable->meaning == REBUILD_DTYPE);
    case FIRST_ARGUMENT: return arguments->count == 0 ? bad(m, "a call lacks its argument") : push(m, arguments->items[0]);
    case INERT: return push_inert(m, callable->text);
    default: return bad(m, "it calls what is no function");
    }
}

static tsar_status load_call(machine *m)
{
    tsar_value *callable = NULL, *arguments = NULL;
    tsar_status status = pop(m, &arguments);
    if (status == TSAR_OK) status = pop(m, &callable);
    return status != TSAR_OK ? status : call(m, callable, arguments);
}

/* NEWOBJ_EX: class, arguments, arguments with names, which no class with a meaning here has. */
static tsar_status load_named_call(machine *m)
{
    tsar_value *ignored = NULL;
    tsar_status status = pop(m, &ignored);
    return status == TSAR_OK ? load_call(m) : status;
}

/* BUILD gives an object its attributes: an OrderedDict its _metadata, a Namespace its contents. None is needed. */
static tsar_status load_build(machine *m)
{
    tsar_value *state = NULL;
    tsar_status status = pop(m, &state);
    if (status == TSAR_OK && (m->depth == 0 || m->stack[m->depth - 1]->kind == TSAR_P_MARK)) return bad(m, "attributes are given to no object");
    return status;
}

/* BINPERSID: ('storage', class, key, place, elements) and, in legacy files, None or a view (key, first, elements). */
static tsar_status load_storage(machine *m)
{
    tsar_value *id = NULL, *value = NULL;
    tsar_status status = pop(m, &id);
    if (status != TSAR_OK) return status;
    tsar_value **items = id->items;
    if (id->kind != TSAR_P_TUPLE || id->count < 5 || id->count > 6 || items[0]->kind != TSAR_P_TEXT || strcmp(items[0]->text, "storage") != 0 ||
        items[1]->kind != TSAR_P_GLOBAL || items[2]->kind != TSAR_P_TEXT || items[4]->kind != TSAR_P_INTEGER)
        return bad(m, "a persistent id is no storage of a known type");
    if (items[1]->meaning != STORAGE) return push_inert(m, items[1]->text);
    const tsar_value *view = id->count == 6 && items[5]->kind != TSAR_P_NONE ? items[5] : NULL;
    if (view && (view->kind != TSAR_P_TUPLE || view->count != 3 || view->items[1]->kind != TSAR_P_INTEGER || view->items[2]->kind != TSAR_P_INTEGER))
        return bad(m, "a view of a storage is not made of key, first element and size");
    status = push_new(m, TSAR_P_STORAGE, &value);
    if (status != TSAR_OK) return status;
    value->dtype = items[1]->dtype;
    value->size = items[1]->size;
    value->foreign = items[1]->foreign;
    value->text = items[2]->text;
    value->integer = items[4]->integer;
    value->first = view ? view->items[1]->integer : 0;
    value->seen = view ? view->items[2]->integer : value->integer;
    if (value->integer < 0 || value->first < 0 || value->seen < 0 || value->first > value->integer || value->seen > value->integer - value->first)
        return bad(m, "a storage has a negative size, or a view reaches beyond it");
    value->next = m->pickle->storages;
    m->pickle->storages = value;
    m->pickle->n_storages++;
    return TSAR_OK;
}

/* -------------------------------------------------------------------------------------------------------- the interpreter */

static tsar_status use_memo(machine *m, size_t width, int recall)
{
    uint64_t index;
    tsar_status status = take_length(m, width, &index);
    if (status != TSAR_OK) return status;
    return recall ? get_memo(m, index) : put_memo(m, index);
}

static tsar_status load_dup(machine *m)
{
    tsar_value *value = NULL;
    tsar_status status = pop(m, &value);
    if (status == TSAR_OK) status = push(m, value);
    return status != TSAR_OK ? status : push(m, value);
}

/* One opcode; the long switch is the table of what is understood. */
static tsar_status step(machine *m, uint8_t op, uint64_t *remembered)
{
    tsar_value *value, **values;
    size_t count;
    switch (op) {
    case 0x80: return skip(m, 1);                    /* PROTO */
    case 0x95: return skip(m, 8);                    /* FRAME */
    case '(': return push_new(m, TSAR_P_MARK, NULL); /* MARK */
    case '0': return pop(m, &value);                 /* POP */
    case '1': return pop_mark(m, &values, &count);   /* POP_MARK */
    case '2': return load_dup(m);                    /* DUP */
    case 'N': return push_new(m, TSAR_P_NONE, NULL); /* NONE */
    case 0x88: return push_integer(m, 1);            /* NEWTRUE */
    case 0x89: return push_integer(m, 0);            /* NEWFALSE */
    case 'J': return load_integer(m, 4, 1);          /* BININT */
    case 'K': return load_integer(m, 1, 0);          /* BININT1 */
    case 'M': return load_integer(m, 2, 0);          /* BININT2 */
    case 'I':
    case 'L': return load_line_integer(m);             /* INT, LONG */
    case 0x8a: return load_long(m, 1);                 /* LONG1 */
    case 0x8b: return load_long(m, 4);                 /* LONG4 */
    case 'G': return load_float(m);                    /* BINFLOAT */
    case 'X': return load_text(m, 4);                  /* BINUNICODE */
    case 0x8c: return load_text(m, 1);                 /* SHORT_BINUNICODE */
    case 0x8d: return load_text(m, 8);                 /* BINUNICODE8 */
    case 'U': return load_text(m, 1);                  /* SHORT_BINSTRING */
    case 'T': return load_text(m, 4);                  /* BINSTRING */
    case 'C': return load_bytes(m, 1);                 /* SHORT_BINBYTES */
    case 'B': return load_bytes(m, 4);                 /* BINBYTES */
    case 0x8e: return load_bytes(m, 8);                /* BINBYTES8 */
    case 0x96: return load_bytes(m, 8);                /* BYTEARRAY8 */
    case ')': return push_new(m, TSAR_P_TUPLE, NULL);  /* EMPTY_TUPLE */
    case 't': return load_marked(m, TSAR_P_TUPLE);     /* TUPLE */
    case 0x85: return load_tuple(m, 1);                /* TUPLE1 */
    case 0x86: return load_tuple(m, 2);                /* TUPLE2 */
    case 0x87: return load_tuple(m, 3);                /* TUPLE3 */
    case ']': return push_new(m, TSAR_P_LIST, NULL);   /* EMPTY_LIST */
    case 'l': return load_marked(m, TSAR_P_LIST);      /* LIST */
    case 'a': return extend_by(m, TSAR_P_LIST, 1);     /* APPEND */
    case 'e': return extend_marked(m, TSAR_P_LIST);    /* APPENDS */
    case '}': return push_new(m, TSAR_P_DICT, NULL);   /* EMPTY_DICT */
    case 'd': return load_marked(m, TSAR_P_DICT);      /* DICT */
    case 's': return extend_by(m, TSAR_P_DICT, 2);     /* SETITEM */
    case 'u': return extend_marked(m, TSAR_P_DICT);    /* SETITEMS */
    case 0x8f: return push_new(m, TSAR_P_INERT, NULL); /* EMPTY_SET */
    case 0x90: return extend_marked(m, TSAR_P_LIST);   /* ADDITEMS */
    case 0x91: return load_marked(m, TSAR_P_INERT);    /* FROZENSET */
    case 'q': return use_memo(m, 1, 0);                /* BINPUT */
    case 'r': return use_memo(m, 4, 0);                /* LONG_BINPUT */
    case 0x94: return memoize(m, remembered);          /* MEMOIZE */
    case 'h': return use_memo(m, 1, 1);                /* BINGET */
    case 'j': return use_memo(m, 4, 1);                /* LONG_BINGET */
    case 'c': return load_global(m);                   /* GLOBAL */
    case 0x93: return load_stack_global(m);            /* STACK_GLOBAL */
    case 'R': return load_call(m);                     /* REDUCE */
    case 0x81: return load_call(m);                    /* NEWOBJ */
    case 0x92: return load_named_call(m);              /* NEWOBJ_EX */
    case 'b': return load_build(m);                    /* BUILD */
    case 'Q': return load_storage(m);                  /* BINPERSID */
    default: return tsar_fail(m->err, TSAR_INPUT, "%s: its pickle holds opcode 0x%02x, which torch.save never writes", m->source->path, (unsigned)op);
    }
}

tsar_status tsar_pickle_load(tsar_pickle *pickle, tsar_source *source, uint64_t *offset, uint64_t end, tsar_value **root, tsar_error *err)
{
    machine m = { 0 };
    m.pickle = pickle;
    m.source = source;
    m.err = err;
    m.start = m.offset = *offset;
    m.end = end;
    uint64_t remembered = 0;
    for (;;) {
        uint8_t op = 0;
        tsar_status status = take(&m, &op, 1);
        if (status == TSAR_OK && op == '.') { /* STOP */
            status = pop(&m, root);
            *offset = m.offset - (m.filled - m.at);
            return status;
        }
        if (status == TSAR_OK) status = step(&m, op, &remembered);
        if (status != TSAR_OK) return status;
    }
}
