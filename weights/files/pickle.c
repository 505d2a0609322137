/* PyTorch checkpoints: the pickle in them, then the zip and the legacy form of the file around it.
 *
 * A bounded interpreter of the pickle opcodes that torch.save writes: protocol 2, and the binary opcodes of 3 to 5 (the format is
 * described in CPython's pickletools). It builds plain values and executes nothing. A pickle names classes and functions;
 * the short table below gives the few that occur in checkpoints a meaning here, and any other name is refused.
 *
 * Bounds: every opcode costs at least one byte of the file and makes at most one value; values take at most `limit` bytes in all,
 * the stack MAX_STACK entries, a string MAX_TEXT bytes; a memo index is below the number of bytes read. Values are shared, not copied, and are never
 * walked recursively, so that a list that holds itself, or itself ten times over, costs nothing. */
#include "files.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_STACK = 1 << 20, MAX_TEXT = 1 << 20, MAX_GLOBAL = 256, MAX_DIMENSIONS = 64, ARENA = 1 << 16, WINDOW = 4096 };

/* ----------------------------------------------------------------------------------------------------------- the values */

typedef enum {
    P_NONE,
    P_INTEGER,
    P_TEXT,
    P_TUPLE,
    P_LIST,
    P_DICT,
    P_GLOBAL,  /* a name of the table below; never looked up anywhere else */
    P_STORAGE, /* the persistent id of a block of elements */
    P_TENSOR,  /* a call of one of torch's rebuild functions: items are storage, first element, shape, strides, ... */
    P_INERT,   /* anything without a meaning here: floats, sets, long integers, argparse.Namespace */
    P_MARK     /* on the stack only */
} kind_of_value;

struct tsar_value {
    kind_of_value kind;
    int meaning;         /* GLOBAL: STORAGE, DTYPE, ... */
    tsar_dtype dtype;    /* STORAGE, TENSOR; GLOBAL of a dtype or a storage class */
    int64_t integer;     /* INTEGER (booleans are 0 and 1); STORAGE: elements */
    int64_t first, seen; /* STORAGE: the part that is seen through a view (legacy files), else 0 and `integer` */
    const char *text;    /* TEXT; STORAGE: its key; 0-terminated, without control characters */
    tsar_value **items;  /* TUPLE, LIST, TENSOR: [count]; DICT: keys and values in turn */
    size_t count, room;
    tsar_value *next; /* STORAGE: the one seen before it */
};

/* --------------------------------------------------------------------------------------------------- the known globals */

enum { STORAGE, DTYPE, DICT, REBUILD, REBUILD_DTYPE, REBUILD_TYPE, FIRST_ARGUMENT, INERT };

static const struct {
    const char *name;
    int meaning;
    tsar_dtype dtype;
} GLOBALS[] = {
    { "torch.FloatStorage", STORAGE, TSAR_F32 },
    { "torch.DoubleStorage", STORAGE, TSAR_F64 },
    { "torch.HalfStorage", STORAGE, TSAR_F16 },
    { "torch.BFloat16Storage", STORAGE, TSAR_BF16 },
    { "torch.LongStorage", STORAGE, TSAR_I64 },
    { "torch.IntStorage", STORAGE, TSAR_I32 },
    { "torch.ShortStorage", STORAGE, TSAR_I16 },
    { "torch.CharStorage", STORAGE, TSAR_I8 },
    { "torch.ByteStorage", STORAGE, TSAR_U8 },
    { "torch.BoolStorage", STORAGE, TSAR_BOOL },
    { "torch.UntypedStorage", STORAGE, TSAR_U8 },
    { "torch.storage.UntypedStorage", STORAGE, TSAR_U8 },
    { "torch.float32", DTYPE, TSAR_F32 },
    { "torch.float64", DTYPE, TSAR_F64 },
    { "torch.float16", DTYPE, TSAR_F16 },
    { "torch.bfloat16", DTYPE, TSAR_BF16 },
    { "torch.int64", DTYPE, TSAR_I64 },
    { "torch.int32", DTYPE, TSAR_I32 },
    { "torch.int16", DTYPE, TSAR_I16 },
    { "torch.int8", DTYPE, TSAR_I8 },
    { "torch.uint64", DTYPE, TSAR_U64 },
    { "torch.uint32", DTYPE, TSAR_U32 },
    { "torch.uint16", DTYPE, TSAR_U16 },
    { "torch.uint8", DTYPE, TSAR_U8 },
    { "torch.bool", DTYPE, TSAR_BOOL },
    { "collections.OrderedDict", DICT, TSAR_U8 },
    { "torch._utils._rebuild_tensor", REBUILD, TSAR_U8 },
    { "torch._utils._rebuild_tensor_v2", REBUILD, TSAR_U8 },
    { "torch._utils._rebuild_tensor_v3", REBUILD_DTYPE, TSAR_U8 },    /* argument 6 is the dtype */
    { "torch._tensor._rebuild_from_type_v2", REBUILD_TYPE, TSAR_U8 }, /* (function, class, its arguments, attributes) */
    { "torch._utils._rebuild_parameter", FIRST_ARGUMENT, TSAR_U8 },   /* (tensor, requires_grad, hooks) */
    { "torch._utils._rebuild_parameter_with_state", FIRST_ARGUMENT, TSAR_U8 },
    { "torch.nn.parameter.Parameter", FIRST_ARGUMENT, TSAR_U8 },
    { "torch.Size", FIRST_ARGUMENT, TSAR_U8 },
    { "torch.Tensor", INERT, TSAR_U8 },
    { "torch.device", INERT, TSAR_U8 },
    { "argparse.Namespace", INERT, TSAR_U8 },
    { "_codecs.encode", INERT, TSAR_U8 },
    { "__builtin__.set", INERT, TSAR_U8 },
    { "builtins.set", INERT, TSAR_U8 },
    { "__builtin__.bytearray", INERT, TSAR_U8 },
    { "builtins.bytearray", INERT, TSAR_U8 },
};

/* -------------------------------------------------------------------------------------------------------------- memory */

struct tsar_block {
    struct tsar_block *next;
    size_t used, size;
}; /* its bytes follow */

static tsar_status charge(tsar_pickle *pickle, const tsar_source *source, uint64_t count, tsar_error *err)
{
    if (count > pickle->limit - pickle->used)
        return tsar_fail(err, TSAR_INPUT, "%s: its pickle would take more than %" PRIu64 " bytes of memory; no checkpoint does", source->path,
                         pickle->limit);
    pickle->used += count;
    return TSAR_OK;
}

/* count zeroed bytes that live as long as the pickle. */
static tsar_status grab(tsar_pickle *pickle, const tsar_source *source, size_t count, void *out, tsar_error *err)
{
    size_t rounded = (count + 15) / 16 * 16, head = (sizeof(struct tsar_block) + 15) / 16 * 16;
    struct tsar_block *block = pickle->blocks;
    tsar_status status = charge(pickle, source, rounded, err);
    if (status) return status;
    if (!block || block->size - block->used < rounded) {
        size_t size = rounded > ARENA ? rounded : ARENA;
        if (!(block = tsar_alloc(head + size, 1, "a pickle's values", err))) return TSAR_ROOM;
        block->size = size;
        block->next = pickle->blocks;
        pickle->blocks = block;
    }
    void *memory = (char *)block + head + block->used;
    block->used += rounded;
    memcpy(out, &memory, sizeof memory);
    return TSAR_OK;
}

void tsar_pickle_close(tsar_pickle *pickle)
{
    while (pickle->blocks) {
        struct tsar_block *next = pickle->blocks->next;
        tsar_free(pickle->blocks);
        pickle->blocks = next;
    }
    memset(pickle, 0, sizeof *pickle);
}

/* --------------------------------------------------------------------------------------------------------- the machine */

typedef struct {
    tsar_pickle *pickle;
    tsar_source *source;
    tsar_error *err;
    uint64_t start, offset, end; /* the next byte to read; at most `end` */
    uint8_t window[WINDOW];      /* bytes from offset - filled + at onwards are here */
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
            m->filled = left < WINDOW ? (size_t)left : WINDOW;
            tsar_status status = tsar_source_read(m->source, m->offset, m->window, m->filled, m->err);
            if (status) return status;
            m->offset += m->filled;
        }
        size_t part = m->filled - m->at < count ? m->filled - m->at : count;
        memcpy(bytes, m->window + m->at, part);
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
    if (status) return status;
    if (*room) memcpy(copy, *array, *room * sizeof *copy);
    *array = copy;
    *room = larger;
    return TSAR_OK;
}

static tsar_status push(machine *m, tsar_value *value)
{
    if (m->depth == MAX_STACK) return bad(m, "its stack grows beyond all checkpoints");
    tsar_status status = grow(m, &m->stack, &m->stack_room, m->depth + 1);
    if (!status) m->stack[m->depth++] = value;
    return status;
}

/* A new value on the stack; *out may be NULL if it needs no more than its kind. */
static tsar_status push_new(machine *m, kind_of_value kind, tsar_value **out)
{
    tsar_value *value = NULL;
    tsar_status status = grab(m->pickle, m->source, sizeof *value, &value, m->err);
    if (status) return status;
    value->kind = kind;
    if (out) *out = value;
    return push(m, value);
}

static tsar_status push_integer(machine *m, int64_t integer)
{
    tsar_value *value = NULL;
    tsar_status status = push_new(m, P_INTEGER, &value);
    if (!status) value->integer = integer;
    return status;
}

static tsar_status pop(machine *m, tsar_value **value)
{
    if (m->depth == 0 || m->stack[m->depth - 1]->kind == P_MARK) return bad(m, "an opcode finds too few values on the stack");
    *value = m->stack[--m->depth];
    return TSAR_OK;
}

/* The values above the last mark, which is removed with them: they stay readable until the next push. */
static tsar_status pop_mark(machine *m, tsar_value ***items, size_t *count)
{
    *items = NULL;
    *count = 0;
    size_t at = m->depth;
    while (at > 0 && m->stack[at - 1]->kind != P_MARK) at--;
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
    if (status) return status;
    if (is_signed && width > 0 && (bytes[width - 1] & 0x80)) memset(bytes + width, 0xFF, 8 - width);
    return push_integer(m, to_signed(tsar_get_u64(bytes)));
}

static tsar_status skip(machine *m, uint64_t count)
{
    uint8_t bytes[256];
    tsar_status status = TSAR_OK;
    for (; !status && count > 0; count -= count < sizeof bytes ? count : sizeof bytes)
        status = take(m, bytes, count < sizeof bytes ? (size_t)count : sizeof bytes);
    return status;
}

/* LONG1 and LONG4: numbers of any size; those beyond 64 bits have no meaning here. */
static tsar_status load_long(machine *m, size_t width)
{
    uint64_t length;
    tsar_status status = take_length(m, width, &length);
    if (status) return status;
    if (length <= 8) return load_integer(m, (size_t)length, 1);
    if (length > MAX_TEXT) return bad(m, "a number is longer than any in a checkpoint");
    status = skip(m, length);
    return status ? status : push_new(m, P_INERT, NULL);
}

static tsar_status load_text(machine *m, size_t width)
{
    uint64_t length;
    tsar_value *value = NULL;
    char *text = NULL;
    tsar_status status = take_length(m, width, &length);
    if (status) return status;
    if (length > MAX_TEXT) return bad(m, "a string is longer than any in a checkpoint");
    if ((status = grab(m->pickle, m->source, (size_t)length + 1, &text, m->err)) || (status = take(m, text, (size_t)length))) return status;
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)text[i] < 32) /* no name of a tensor; it could be taken for a shorter one, or forge lines in a message */
            return push_new(m, P_INERT, NULL);
    status = push_new(m, P_TEXT, &value);
    if (!status) value->text = text;
    return status;
}

/* Bytes are never needed. */
static tsar_status load_bytes(machine *m, size_t width)
{
    uint64_t length;
    tsar_status status = take_length(m, width, &length);
    if (!status) status = skip(m, length);
    return status ? status : push_new(m, P_INERT, NULL);
}

static tsar_status load_float(machine *m)
{
    tsar_status status = skip(m, 8);
    return status ? status : push_new(m, P_INERT, NULL);
}

/* ----------------------------------------------------------------------------------------------------------- containers */

/* A copy of `count` values in a new tuple or list. */
static tsar_status push_items(machine *m, kind_of_value kind, tsar_value **items, size_t count)
{
    tsar_value **copy = NULL, *value = NULL;
    tsar_status status = TSAR_OK;
    if (count > 0 && !(status = grab(m->pickle, m->source, count * sizeof *copy, &copy, m->err))) memcpy(copy, items, count * sizeof *copy);
    if (!status) status = push_new(m, kind, &value);
    if (!status) {
        value->items = copy;
        value->count = value->room = count;
    }
    return status;
}

static tsar_status load_marked(machine *m, kind_of_value kind)
{
    tsar_value **items;
    size_t count;
    tsar_status status = pop_mark(m, &items, &count);
    if (!status && kind == P_DICT && count % 2) return bad(m, "a dictionary has a key without a value");
    return status ? status : push_items(m, kind, items, count);
}

/* TUPLE1, TUPLE2, TUPLE3. */
static tsar_status load_tuple(machine *m, size_t count)
{
    tsar_value *items[3] = { NULL };
    tsar_status status = TSAR_OK;
    for (size_t i = count; !status && i-- > 0;) status = pop(m, &items[i]);
    return status ? status : push_items(m, P_TUPLE, items, count);
}

/* Appends to the list or dictionary on top of the stack. An inert object (a set, a Namespace) swallows what it is given. */
static tsar_status extend(machine *m, kind_of_value kind, tsar_value **items, size_t count)
{
    tsar_value *into = m->depth ? m->stack[m->depth - 1] : NULL;
    if (into && into->kind == P_INERT) return TSAR_OK;
    if (!into || into->kind != kind || (kind == P_DICT && count % 2)) return bad(m, "an opcode adds items to what cannot hold them");
    tsar_status status = grow(m, &into->items, &into->room, into->count + count);
    if (!status && count) memcpy(into->items + into->count, items, count * sizeof *items);
    if (!status) into->count += count;
    return status;
}

static tsar_status extend_marked(machine *m, kind_of_value kind)
{
    tsar_value **items;
    size_t count;
    tsar_status status = pop_mark(m, &items, &count);
    return status ? status : extend(m, kind, items, count);
}

/* APPEND (one item) and SETITEM (key and value). */
static tsar_status extend_by(machine *m, kind_of_value kind, size_t count)
{
    tsar_value *items[2] = { NULL };
    tsar_status status = TSAR_OK;
    for (size_t i = count; !status && i-- > 0;) status = pop(m, &items[i]);
    return status ? status : extend(m, kind, items, count);
}

static tsar_status put_memo(machine *m, uint64_t index)
{
    if (m->depth == 0 || m->stack[m->depth - 1]->kind == P_MARK) return bad(m, "an opcode remembers a value, but there is none");
    if (index > m->offset - m->start) return bad(m, "a memo index is larger than the pickle");
    tsar_status status = grow(m, &m->memo, &m->memo_room, (size_t)index + 1);
    if (!status) m->memo[index] = m->stack[m->depth - 1];
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

static tsar_status push_global(machine *m, const char *module, const char *name)
{
    char full[2 * MAX_GLOBAL + 2];
    size_t length = strlen(module);
    if (length >= MAX_GLOBAL || strlen(name) >= MAX_GLOBAL) return bad(m, "the name of a global is longer than 255 bytes");
    memcpy(full, module, length);
    full[length] = '.';
    memcpy(full + length + 1, name, strlen(name) + 1);
    for (size_t i = 0; i < sizeof GLOBALS / sizeof *GLOBALS; i++)
        if (strcmp(GLOBALS[i].name, full) == 0) {
            tsar_value *value = NULL;
            tsar_status status = push_new(m, P_GLOBAL, &value);
            if (status) return status;
            value->meaning = GLOBALS[i].meaning;
            value->dtype = GLOBALS[i].dtype;
            return TSAR_OK;
        }
    for (char *c = full; *c; c++)
        if (*c < 32 || *c > 126) *c = '?'; /* the name ends up on a terminal */
    return tsar_fail(m->err, TSAR_INPUT, "%s: refuses to load %.200s, which weights do not need; save the state dict alone", m->source->path, full);
}

/* GLOBAL: module and name, a line each. */
static tsar_status load_global(machine *m)
{
    char lines[2][MAX_GLOBAL];
    for (int i = 0; i < 2; i++)
        for (size_t n = 0;; n++) {
            if (n == MAX_GLOBAL) return bad(m, "the name of a global is longer than 255 bytes");
            tsar_status status = take(m, &lines[i][n], 1);
            if (status) return status;
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
    if (!status) status = pop(m, &module);
    if (status) return status;
    if (name->kind != P_TEXT || module->kind != P_TEXT) return bad(m, "the name of a global is no string");
    return push_global(m, module->text, name->text);
}

/* Shape or strides: few, so that a list which many tensors share costs little each time. */
static int all_integers(const tsar_value *tuple)
{
    if ((tuple->kind != P_TUPLE && tuple->kind != P_LIST) || tuple->count > MAX_DIMENSIONS) return 0;
    for (size_t i = 0; i < tuple->count; i++)
        if (tuple->items[i]->kind != P_INTEGER) return 0;
    return 1;
}

/* (storage, first element, shape, strides, ...): becomes a tensor. Whether it fits its storage is checked later, when its name is known. */
static tsar_status rebuild_tensor(machine *m, const tsar_value *arguments, int own_dtype)
{
    tsar_value *value = NULL, **items = arguments->items;
    size_t count = arguments->count;
    if (count < 4 || items[0]->kind != P_STORAGE || items[1]->kind != P_INTEGER || !all_integers(items[2]) || !all_integers(items[3]))
        return bad(m, "a tensor is not made of storage, offset, shape and strides, or has more than 64 dimensions");
    if (own_dtype && (count < 7 || items[6]->kind != P_GLOBAL || items[6]->meaning != DTYPE)) return bad(m, "a tensor has no dtype");
    size_t metadata = own_dtype ? 7 : 6;
    if (count > metadata && (items[metadata]->kind != P_DICT || items[metadata]->count > 0) && items[metadata]->kind != P_NONE)
        return bad(m, "a tensor is a conjugate or negative view; save it with .resolve_conj().resolve_neg()");
    tsar_status status = push_new(m, P_TENSOR, &value);
    if (status) return status;
    value->items = items;
    value->count = 4;
    value->dtype = own_dtype ? items[6]->dtype : items[0]->dtype;
    return TSAR_OK;
}

/* OrderedDict() or OrderedDict([[key, value], ...]). */
static tsar_status make_dict(machine *m, const tsar_value *arguments)
{
    tsar_status status = push_new(m, P_DICT, NULL);
    if (status || arguments->count == 0) return status;
    const tsar_value *pairs = arguments->items[0];
    if (pairs->kind != P_LIST && pairs->kind != P_TUPLE) return bad(m, "an OrderedDict is made of something else than pairs");
    for (size_t i = 0; !status && i < pairs->count; i++) {
        if (pairs->items[i]->count != 2 || (pairs->items[i]->kind != P_LIST && pairs->items[i]->kind != P_TUPLE))
            return bad(m, "an OrderedDict is made of something else than pairs");
        status = extend(m, P_DICT, pairs->items[i]->items, 2);
    }
    return status;
}

/* What a call of a known global gives: REDUCE and NEWOBJ. */
static tsar_status call(machine *m, const tsar_value *callable, const tsar_value *arguments)
{
    if (callable->kind != P_GLOBAL || arguments->kind != P_TUPLE) return bad(m, "it calls what is no function");
    if (callable->meaning == REBUILD_TYPE) { /* a tensor with attributes: the call it stands for */
        if (arguments->count < 3 || arguments->items[0]->kind != P_GLOBAL || arguments->items[2]->kind != P_TUPLE)
            return bad(m, "a tensor with attributes is not made of a function and its arguments");
        callable = arguments->items[0];
        arguments = arguments->items[2];
    }
    switch (callable->meaning) {
    case DICT:
        return make_dict(m, arguments);
    case REBUILD:
    case REBUILD_DTYPE:
        return rebuild_tensor(m, arguments, callable->meaning == REBUILD_DTYPE);
    case FIRST_ARGUMENT:
        if (arguments->count == 0) return bad(m, "a call lacks its argument");
        return push(m, arguments->items[0]);
    case INERT:
        return push_new(m, P_INERT, NULL);
    default:
        return bad(m, "it calls what is no function");
    }
}

static tsar_status load_call(machine *m)
{
    tsar_value *callable = NULL, *arguments = NULL;
    tsar_status status = pop(m, &arguments);
    if (!status) status = pop(m, &callable);
    return status ? status : call(m, callable, arguments);
}

/* BUILD gives an object its attributes: an OrderedDict its _metadata, a Namespace its contents. None is needed. */
static tsar_status load_build(machine *m)
{
    tsar_value *state = NULL;
    tsar_status status = pop(m, &state);
    if (!status && (m->depth == 0 || m->stack[m->depth - 1]->kind == P_MARK)) return bad(m, "attributes are given to no object");
    return status;
}

/* BINPERSID: ('storage', class, key, place, elements) and, in legacy files, None or a view (key, first, elements). */
static tsar_status load_storage(machine *m)
{
    tsar_value *id = NULL, *value = NULL;
    tsar_status status = pop(m, &id);
    if (status) return status;
    tsar_value **items = id->items;
    if (id->kind != P_TUPLE || id->count < 5 || id->count > 6 || items[0]->kind != P_TEXT || strcmp(items[0]->text, "storage") != 0 ||
        items[1]->kind != P_GLOBAL || items[1]->meaning != STORAGE || items[2]->kind != P_TEXT || items[4]->kind != P_INTEGER)
        return bad(m, "a persistent id is no storage of a known type");
    const tsar_value *view = id->count == 6 && items[5]->kind != P_NONE ? items[5] : NULL;
    if (view && (view->kind != P_TUPLE || view->count != 3 || view->items[1]->kind != P_INTEGER || view->items[2]->kind != P_INTEGER))
        return bad(m, "a view of a storage is not made of key, first element and size");
    if ((status = push_new(m, P_STORAGE, &value))) return status;
    value->dtype = items[1]->dtype;
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

static tsar_status remember(machine *m, size_t width, int recall)
{
    uint64_t index;
    tsar_status status = take_length(m, width, &index);
    if (status) return status;
    return recall ? get_memo(m, index) : put_memo(m, index);
}

static tsar_status load_dup(machine *m)
{
    tsar_value *value = NULL;
    tsar_status status = pop(m, &value);
    if (!status) status = push(m, value);
    return status ? status : push(m, value);
}

/* One opcode; the long switch is the table of what is understood. */
static tsar_status step(machine *m, uint8_t op, uint64_t *remembered)
{
    tsar_value *value, **values;
    size_t count;
    switch (op) {
    case 0x80:
        return skip(m, 1); /* PROTO */
    case 0x95:
        return skip(m, 8); /* FRAME */
    case '(':
        return push_new(m, P_MARK, NULL); /* MARK */
    case '0':
        return pop(m, &value); /* POP */
    case '1':
        return pop_mark(m, &values, &count); /* POP_MARK */
    case '2':
        return load_dup(m); /* DUP */
    case 'N':
        return push_new(m, P_NONE, NULL); /* NONE */
    case 0x88:
        return push_integer(m, 1); /* NEWTRUE */
    case 0x89:
        return push_integer(m, 0); /* NEWFALSE */
    case 'J':
        return load_integer(m, 4, 1); /* BININT */
    case 'K':
        return load_integer(m, 1, 0); /* BININT1 */
    case 'M':
        return load_integer(m, 2, 0); /* BININT2 */
    case 0x8a:
        return load_long(m, 1); /* LONG1 */
    case 0x8b:
        return load_long(m, 4); /* LONG4 */
    case 'G':
        return load_float(m); /* BINFLOAT */
    case 'X':
        return load_text(m, 4); /* BINUNICODE */
    case 0x8c:
        return load_text(m, 1); /* SHORT_BINUNICODE */
    case 0x8d:
        return load_text(m, 8); /* BINUNICODE8 */
    case 'U':
        return load_text(m, 1); /* SHORT_BINSTRING */
    case 'T':
        return load_text(m, 4); /* BINSTRING */
    case 'C':
        return load_bytes(m, 1); /* SHORT_BINBYTES */
    case 'B':
        return load_bytes(m, 4); /* BINBYTES */
    case 0x8e:
        return load_bytes(m, 8); /* BINBYTES8 */
    case 0x96:
        return load_bytes(m, 8); /* BYTEARRAY8 */
    case ')':
        return push_new(m, P_TUPLE, NULL); /* EMPTY_TUPLE */
    case 't':
        return load_marked(m, P_TUPLE); /* TUPLE */
    case 0x85:
        return load_tuple(m, 1); /* TUPLE1 */
    case 0x86:
        return load_tuple(m, 2); /* TUPLE2 */
    case 0x87:
        return load_tuple(m, 3); /* TUPLE3 */
    case ']':
        return push_new(m, P_LIST, NULL); /* EMPTY_LIST */
    case 'l':
        return load_marked(m, P_LIST); /* LIST */
    case 'a':
        return extend_by(m, P_LIST, 1); /* APPEND */
    case 'e':
        return extend_marked(m, P_LIST); /* APPENDS */
    case '}':
        return push_new(m, P_DICT, NULL); /* EMPTY_DICT */
    case 'd':
        return load_marked(m, P_DICT); /* DICT */
    case 's':
        return extend_by(m, P_DICT, 2); /* SETITEM */
    case 'u':
        return extend_marked(m, P_DICT); /* SETITEMS */
    case 0x8f:
        return push_new(m, P_INERT, NULL); /* EMPTY_SET */
    case 0x90:
        return extend_marked(m, P_LIST); /* ADDITEMS */
    case 0x91:
        return load_marked(m, P_INERT); /* FROZENSET */
    case 'q':
        return remember(m, 1, 0); /* BINPUT */
    case 'r':
        return remember(m, 4, 0); /* LONG_BINPUT */
    case 0x94:
        return memoize(m, remembered); /* MEMOIZE */
    case 'h':
        return remember(m, 1, 1); /* BINGET */
    case 'j':
        return remember(m, 4, 1); /* LONG_BINGET */
    case 'c':
        return load_global(m); /* GLOBAL */
    case 0x93:
        return load_stack_global(m); /* STACK_GLOBAL */
    case 'R':
        return load_call(m); /* REDUCE */
    case 0x81:
        return load_call(m); /* NEWOBJ */
    case 'b':
        return load_build(m); /* BUILD */
    case 'Q':
        return load_storage(m); /* BINPERSID */
    default:
        return tsar_fail(m->err, TSAR_INPUT, "%s: its pickle holds opcode 0x%02x, which torch.save never writes", m->source->path, (unsigned)op);
    }
}

/* Interprets one pickle, which starts at *offset and must stop before `end`; *offset then follows it. Several may be loaded into one tsar_pickle. */
static tsar_status load_pickle(tsar_pickle *pickle, tsar_source *source, uint64_t *offset, uint64_t end, tsar_value **root, tsar_error *err)
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
        if (!status && op == '.') { /* STOP */
            status = pop(&m, root);
            *offset = m.offset - (m.filled - m.at);
            return status;
        }
        if (!status) status = step(&m, op, &remembered);
        if (status) return status;
    }
}

/* The value of a text key, the last one given; NULL if absent or `dict` is no dictionary. */
static tsar_value *lookup(const tsar_value *dict, const char *key)
{
    if (dict->kind == P_DICT)
        for (size_t i = dict->count; i >= 2; i -= 2)
            if (dict->items[i - 2]->kind == P_TEXT && strcmp(dict->items[i - 2]->text, key) == 0) return dict->items[i - 1];
    return NULL;
}

static int big_endian_host(void)
{
    const uint16_t one = 1;
    uint8_t first;
    memcpy(&first, &one, 1);
    return first == 0;
}

/* ------------------------------------------------------------------------------- PyTorch files: where the storages are */

/* One storage of a PyTorch file, whatever number of tensors share it. */
typedef struct {
    const tsar_value *storage; /* any of the persistent ids that name it */
    uint64_t offset;           /* of its first byte in the file */
    int placed;
} located;

typedef struct {
    size_t count;
    located *places;
} placement; /* ascending by key */

static int by_key(const void *a, const void *b) { return strcmp(((const located *)a)->storage->text, ((const located *)b)->storage->text); }

static located *find_place(const placement *all, const char *key)
{
    tsar_value wanted = { 0 };
    located pattern = { 0 };
    wanted.text = key;
    pattern.storage = &wanted;
    return all->count ? bsearch(&pattern, all->places, all->count, sizeof pattern, by_key) : NULL;
}

/* Every storage once. */
static tsar_status list_storages(const tsar_checkpoint *checkpoint, placement *all, tsar_error *err)
{
    const tsar_pickle *pickle = &checkpoint->pickle;
    size_t n = 0;
    all->count = 0;
    if (!(all->places = tsar_alloc(pickle->n_storages, sizeof *all->places, "the list of storages", err))) return TSAR_ROOM;
    for (const tsar_value *storage = pickle->storages; storage; storage = storage->next) all->places[n++].storage = storage;
    if (n > 0) qsort(all->places, n, sizeof *all->places, by_key);
    for (size_t i = 0; i < n; i++) {
        const tsar_value *last = all->count ? all->places[all->count - 1].storage : NULL, *storage = all->places[i].storage;
        if (!last || strcmp(last->text, storage->text) != 0)
            all->places[all->count++] = all->places[i];
        else if (last->dtype != storage->dtype || last->integer != storage->integer)
            return tsar_fail(err, TSAR_INPUT, "%s: storage %.64s is described as %" PRId64 " elements %s and as %" PRId64 " elements %s",
                             checkpoint->path, storage->text, last->integer, tsar_dtype_name(last->dtype), storage->integer,
                             tsar_dtype_name(storage->dtype));
    }
    return TSAR_OK;
}

/* Bytes of a storage: 0 and an error if they exceed the file. */
static tsar_status storage_bytes(const tsar_checkpoint *checkpoint, const tsar_value *storage, uint64_t *bytes, tsar_error *err)
{
    size_t size = tsar_dtype_size(storage->dtype);
    *bytes = 0;
    if ((uint64_t)storage->integer > checkpoint->source.size / size)
        return tsar_fail(err, TSAR_INPUT, "%s: storage %.64s claims %" PRId64 " elements %s, more than the file holds", checkpoint->path,
                         storage->text, storage->integer, tsar_dtype_name(storage->dtype));
    *bytes = (uint64_t)storage->integer * size;
    return TSAR_OK;
}

/* ------------------------------------------------------------------------------------------------------ the zip form */

/* The archive's one folder: the part of "folder/data.pkl" before the '/'. */
static tsar_status find_folder(const tsar_checkpoint *checkpoint, const char **name, size_t *length, tsar_error *err)
{
    static const char file[] = "/data.pkl";
    *length = 0;
    for (size_t i = 0; i < checkpoint->zip.count; i++) {
        const char *entry = checkpoint->zip.entries[i].name, *slash = strchr(entry, '/');
        if (!slash || strcmp(slash, file) != 0) continue;
        if (*length)
            return tsar_fail(err, TSAR_INPUT, "%s: holds two data.pkl, in %.*s and %.*s; torch.save writes one", checkpoint->path, (int)*length,
                             *name, (int)(slash - entry), entry);
        *name = entry;
        *length = (size_t)(slash - entry);
    }
    if (*length == 0) return tsar_fail(err, TSAR_INPUT, "%s: is a zip archive without data.pkl; give a file that torch.save wrote", checkpoint->path);
    return TSAR_OK;
}

static tsar_status find_entry(const tsar_checkpoint *checkpoint, const char *folder, size_t length, const char *inner, const char *key,
                              const tsar_zip_entry **entry, tsar_error *err)
{
    char name[1024];
    *entry = NULL;
    if (length + strlen(inner) + strlen(key) >= sizeof name)
        return tsar_fail(err, TSAR_INPUT, "%s: a storage's key is longer than any entry's name", checkpoint->path);
    memcpy(name, folder, length);
    strcpy(name + length, inner);
    strcat(name, key);
    *entry = tsar_zip_find(&checkpoint->zip, name);
    return TSAR_OK;
}

/* The entry "byteorder", newer than the rest of the format: little unless it says otherwise. */
static tsar_status read_byteorder(tsar_checkpoint *checkpoint, const char *folder, size_t length, tsar_error *err)
{
    const tsar_zip_entry *entry;
    char order[7] = "";
    tsar_status status = find_entry(checkpoint, folder, length, "/byteorder", "", &entry, err);
    if (!status && entry && entry->size < sizeof order) status = tsar_source_read(&checkpoint->source, entry->data, order, (size_t)entry->size, err);
    if (status) return status;
    int big = strcmp(order, "big") == 0;
    if (entry && !big && strcmp(order, "little") != 0)
        return tsar_fail(err, TSAR_INPUT, "%s: its byteorder is neither little nor big", checkpoint->path);
    checkpoint->swapped = big != big_endian_host();
    return TSAR_OK;
}

static tsar_status open_zip(tsar_checkpoint *checkpoint, placement *all, tsar_value **root, tsar_error *err)
{
    const char *folder = NULL;
    const tsar_zip_entry *entry = NULL;
    size_t length = 0;
    tsar_status status = tsar_zip_open(&checkpoint->zip, &checkpoint->source, err);
    if (!status) status = find_folder(checkpoint, &folder, &length, err);
    if (!status) status = find_entry(checkpoint, folder, length, "/data.pkl", "", &entry, err);
    if (!status) status = read_byteorder(checkpoint, folder, length, err);
    if (status) return status;
    uint64_t offset = entry->data;
    status = load_pickle(&checkpoint->pickle, &checkpoint->source, &offset, entry->data + entry->size, root, err);
    if (!status) status = list_storages(checkpoint, all, err);
    for (size_t i = 0; !status && i < all->count; i++) {
        located *place = &all->places[i];
        uint64_t bytes;
        if ((status = find_entry(checkpoint, folder, length, "/data/", place->storage->text, &entry, err))) return status;
        if (!entry) return tsar_fail(err, TSAR_INPUT, "%s: storage %.64s is missing from the archive", checkpoint->path, place->storage->text);
        if (!(status = storage_bytes(checkpoint, place->storage, &bytes, err)) && bytes != entry->size)
            return tsar_fail(err, TSAR_INPUT, "%s: storage %.64s has %" PRIu64 " bytes, its tensors claim %" PRIu64, checkpoint->path,
                             place->storage->text, entry->size, bytes);
        place->offset = entry->data;
        place->placed = 1;
    }
    return status;
}

/* --------------------------------------------------------------------------------------------------- the legacy form */

/* PROTO 2 and LONG1 of 10 bytes, 0x1950a86a20f9469cfc6c: how every legacy file begins; STOP follows. */
static const uint8_t LEGACY[15] = { 0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, '.' };
enum { LEGACY_PROTOCOL = 1001 };

int tsar_torch_is_legacy(const uint8_t *head) { return memcmp(head, LEGACY, sizeof LEGACY) == 0; }

/* After the pickles, for each key in their list: the number of elements and the elements, always little-endian. */
static tsar_status place_legacy(tsar_checkpoint *checkpoint, placement *all, const tsar_value *keys, uint64_t offset, tsar_error *err)
{
    for (size_t i = 0; i < keys->count; i++) {
        uint8_t count[8];
        uint64_t bytes;
        located *place = keys->items[i]->kind == P_TEXT ? find_place(all, keys->items[i]->text) : NULL;
        if (!place || place->placed)
            return tsar_fail(err, TSAR_INPUT, "%s: its list of storages names one twice or one that no tensor uses", checkpoint->path);
        tsar_status status = tsar_source_read(&checkpoint->source, offset, count, sizeof count, err);
        if (!status) status = storage_bytes(checkpoint, place->storage, &bytes, err);
        if (status) return status;
        if (tsar_get_u64(count) != (uint64_t)place->storage->integer)
            return tsar_fail(err, TSAR_INPUT, "%s: storage %.64s has %" PRIu64 " elements, its tensors claim %" PRId64, checkpoint->path,
                             place->storage->text, tsar_get_u64(count), place->storage->integer);
        place->offset = offset + 8;
        place->placed = 1;
        if (bytes > checkpoint->source.size - place->offset)
            return tsar_fail(err, TSAR_INPUT, "%s: ends inside storage %.64s; the file is cut", checkpoint->path, place->storage->text);
        offset = place->offset + bytes;
    }
    if (offset != checkpoint->source.size)
        return tsar_fail(err, TSAR_INPUT, "%s: %" PRIu64 " bytes follow its last storage; the file is damaged", checkpoint->path,
                         checkpoint->source.size - offset);
    for (size_t i = 0; i < all->count; i++)
        if (!all->places[i].placed)
            return tsar_fail(err, TSAR_INPUT, "%s: storage %.64s is missing from the file", checkpoint->path, all->places[i].storage->text);
    return TSAR_OK;
}

/* Five pickles in a row: the magic number, the protocol, sizes of C types, the object, the keys of the storages. */
static tsar_status open_legacy(tsar_checkpoint *checkpoint, placement *all, tsar_value **root, tsar_error *err)
{
    tsar_source *source = &checkpoint->source;
    uint64_t offset = sizeof LEGACY;
    tsar_value *protocol = NULL, *system = NULL, *keys = NULL, **targets[4];
    targets[0] = &protocol;
    targets[1] = &system;
    targets[2] = root;
    targets[3] = &keys;
    checkpoint->swapped = big_endian_host();
    for (int i = 0; i < 4; i++) {
        tsar_status status = load_pickle(&checkpoint->pickle, source, &offset, source->size, targets[i], err);
        if (status) return status;
    }
    if (protocol->kind != P_INTEGER || protocol->integer != LEGACY_PROTOCOL)
        return tsar_fail(err, TSAR_INPUT, "%s: its legacy protocol is not 1001; save it again with a newer torch", checkpoint->path);
    if (keys->kind != P_LIST) return tsar_fail(err, TSAR_INPUT, "%s: its list of storages is missing; the file is damaged", checkpoint->path);
    tsar_status status = list_storages(checkpoint, all, err);
    return status ? status : place_legacy(checkpoint, all, keys, offset, err);
}

/* ------------------------------------------------------------------------------------------------- tensors of a state dict */

/* Shape and strides of a rebuilt tensor: not negative, every product and sum below 2^63, every element inside the storage. */
static tsar_status read_geometry(const tsar_checkpoint *checkpoint, tsar_import_tensor *tensor, const tsar_value *value, uint64_t available,
                                 tsar_error *err)
{
    const tsar_value *shape = value->items[2], *stride = value->items[3];
    if (shape->count > TSAR_MAX_RANK || shape->count != stride->count || value->items[1]->integer < 0)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %.128s has a negative offset, or %zu dimensions and %zu strides", checkpoint->path,
                         tensor->name, shape->count, stride->count);
    uint64_t last = 0, dense = 1;
    int overflow = 0;
    tensor->rank = shape->count;
    tensor->count = 1;
    tensor->contiguous = 1;
    for (size_t i = tensor->rank; i-- > 0;) {
        int64_t extent = shape->items[i]->integer, step = stride->items[i]->integer;
        if (extent < 0 || step < 0)
            return tsar_fail(err, TSAR_INPUT,
                             "%s: tensor %.128s has size %" PRId64 " and stride %" PRId64 " in dimension %zu; negative ones are never saved",
                             checkpoint->path, tensor->name, extent, step, i);
        uint64_t n = (uint64_t)extent, s = (uint64_t)step, limit = INT64_MAX;
        overflow |= n > SIZE_MAX || (n > 1 && s > (limit - last) / (n - 1)) || (n > 0 && tensor->count > limit / n);
        if (overflow) break;
        tensor->shape[i] = (size_t)n;
        tensor->stride[i] = s;
        tensor->contiguous &= n == 1 || s == dense;
        last += n ? (n - 1) * s : 0;
        tensor->count *= n;
        dense *= n;
    }
    uint64_t first = (uint64_t)value->items[1]->integer;
    tensor->span = tensor->count ? last + 1 : 0;
    if (overflow || first > available || (tensor->count && tensor->span > available - first))
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %.128s reaches beyond its storage of %" PRIu64 " elements", checkpoint->path, tensor->name,
                         available);
    tensor->contiguous |= tensor->count == 0;
    return TSAR_OK;
}

static tsar_status read_tensor(tsar_checkpoint *checkpoint, const placement *all, tsar_import_tensor *tensor, const char *name,
                               const tsar_value *value, tsar_error *err)
{
    const tsar_value *storage = value->items[0];
    const located *place = find_place(all, storage->text);
    size_t held = tsar_dtype_size(storage->dtype), size = tsar_dtype_size(value->dtype);
    tensor->name = name;
    tensor->checkpoint = checkpoint;
    tensor->dtype = value->dtype;
    if (!place) /* every persistent id was listed */
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %.128s has no storage", checkpoint->path, name);
    tsar_status status = read_geometry(checkpoint, tensor, value, (uint64_t)storage->seen * held / size, err);
    if (!status) tensor->offset = place->offset + (uint64_t)storage->first * held + (uint64_t)value->items[1]->integer * size;
    return status;
}

static size_t count_tensors(const tsar_value *dict)
{
    size_t n = 0;
    if (dict && dict->kind == P_DICT)
        for (size_t i = 0; i < dict->count; i += 2) n += dict->items[i]->kind == P_TEXT && dict->items[i + 1]->kind == P_TENSOR;
    return n;
}

/* The state dict: on top, or where LlamaGen's own scripts look for it, in their order (QUIRKS, Checkpoints 1). */
static const tsar_value *find_state(const tsar_checkpoint *checkpoint, const tsar_value *root, tsar_note_fn note, void *context)
{
    static const char *const KEYS[] = { "model", "module", "state_dict", "ema" };
    const tsar_value *state = NULL;
    const char *chosen = NULL;
    if (count_tensors(root)) return root;
    for (size_t i = 0; i < sizeof KEYS / sizeof *KEYS; i++) {
        const tsar_value *candidate = lookup(root, KEYS[i]);
        if (!candidate || count_tensors(candidate) == 0) continue;
        if (state)
            tsar_note(note, context, "%s: takes the weights under \"%s\", not those under \"%s\"", checkpoint->path, chosen, KEYS[i]);
        else {
            state = candidate;
            chosen = KEYS[i];
        }
    }
    return state;
}

static tsar_status list_tensors(tsar_checkpoint *checkpoint, const placement *all, const tsar_value *root, tsar_note_fn note, void *context,
                                tsar_error *err)
{
    const tsar_value *state = find_state(checkpoint, root, note, context);
    if (!state)
        return tsar_fail(err, TSAR_INPUT, "%s: holds no state dict, neither on top nor under model, module, state_dict or ema", checkpoint->path);
    if (!(checkpoint->tensors = tsar_alloc(count_tensors(state), sizeof *checkpoint->tensors, "the list of tensors", err))) return TSAR_ROOM;
    for (size_t i = 0; i < state->count; i += 2) {
        const tsar_value *key = state->items[i], *value = state->items[i + 1];
        if (key->kind == P_TEXT && value->kind == P_TENSOR) {
            tsar_status status = read_tensor(checkpoint, all, &checkpoint->tensors[checkpoint->count++], key->text, value, err);
            if (status) return status;
        } else if (key->kind == P_TEXT)
            tsar_note(note, context, "%s: %.128s is no tensor, left out", checkpoint->path, key->text);
    }
    return TSAR_OK;
}

tsar_status tsar_torch_open(tsar_checkpoint *checkpoint, int legacy, tsar_note_fn note, void *context, tsar_error *err)
{
    placement all = { 0, NULL };
    tsar_value *root = NULL;
    checkpoint->bytes = checkpoint->source.size;
    checkpoint->pickle.limit = checkpoint->bytes > 1 << 24 ? checkpoint->bytes : 1 << 24;
    tsar_status status = legacy ? open_legacy(checkpoint, &all, &root, err) : open_zip(checkpoint, &all, &root, err);
    if (!status) status = list_tensors(checkpoint, &all, root, note, context, err);
    tsar_free(all.places);
    return status;
}
