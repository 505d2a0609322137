/* What verify says of a tensor: a line of text, the members of a JSON object. */
#include "verify.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *const tsar_verdict_names[TSAR_VERDICTS] = { "identical", "same", "near-tie", "differs", "misshapen", "unknown", "missing" };

int tsar_verdict_is_difference(tsar_verdict verdict, int strict)
{
    return verdict == TSAR_DIFFERS || verdict == TSAR_MISSHAPEN || verdict == TSAR_UNKNOWN || (strict && verdict == TSAR_NEAR_TIE);
}

/* Text that grows in a buffer and is cut at its end. */
typedef struct {
    char *text;
    size_t size, used;
} line;

TSAR_FORMAT(2, 3) static void add(line *out, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    const int length = vsnprintf(out->text + out->used, out->size - out->used, format, values);
    va_end(values);
    if (length > 0) out->used += (size_t)length < out->size - out->used ? (size_t)length : out->size - out->used - 1;
}

/* "[3,64]" */
static void add_shape(line *out, size_t rank, const size_t *shape)
{
    add(out, "[");
    for (size_t i = 0; i < rank; i++) add(out, i ? ",%zu" : "%zu", shape[i]);
    add(out, "]");
}

/* Flat index `flat` in a tensor of this shape. */
static void add_index(line *out, size_t rank, const size_t *shape, size_t flat)
{
    size_t index[TSAR_MAX_RANK] = { 0 };
    for (size_t i = rank; i-- > 0; flat /= shape[i]) index[i] = flat % shape[i];
    add_shape(out, rank, index);
}

/* "DIFFERS: RMS of the whole 41 times its limit ..." */
static void add_difference(line *out, const tsar_comparison *r)
{
    if (!tsar_dtype_is_float(r->our_dtype)) {
        add(out, "DIFFERS: %zu values, first at ", r->bad);
        add_index(out, r->rank, r->shape, r->first_bad);
        add(out, ": %.0f here, %.0f there", r->ours, r->theirs);
        if (r->margin > 1 && r->margin < INFINITY) add(out, "; a gap of %.3g times what %s can decide", r->margin, tsar_dtype_name(r->precision));
        return;
    }
    add(out, "DIFFERS: ");
    if (r->by == TSAR_BY_TENSOR) add(out, "%.3g times its limit", r->excess);
    if (r->by == TSAR_BY_ROW) add(out, "%s %zu is %.3g times its limit", tsar_has_prefix(r->name, "vq.") ? "channel" : "row", r->row, r->excess);
    if (r->by == TSAR_BY_ELEMENT) add(out, "%zu element%s beyond the limit", r->bad, r->bad == 1 ? "" : "s");
    add(out, ", worst at ");
    add_index(out, r->rank, r->shape, r->place);
    add(out, ": %.9g here, %.9g there", r->ours, r->theirs);
    if (r->passes_in != TSAR_F64) add(out, "; would pass as %s", tsar_dtype_name(r->passes_in));
}

void tsar_comparison_text(char *text, size_t size, const tsar_comparison *r)
{
    line out = { text, size, 0 };
    const int measured = r->verdict <= TSAR_DIFFERS && tsar_dtype_is_float(r->our_dtype);
    add(&out, "%-28s ", r->name);
    const size_t shape = out.used;
    add_shape(&out, r->rank, r->shape);
    add(&out, "%*s ", out.used < shape + 16 ? (int)(shape + 16 - out.used) : 0, "");
    if (measured)
        add(&out, "%9.2g %9.2g %9.2g ", r->rms, r->max, r->limit);
    else
        add(&out, "%9s %9s %9s ", "-", "-", "-");
    if (measured && r->from_inputs >= 0)
        add(&out, "%9.2g  ", r->from_inputs);
    else
        add(&out, "%9s  ", "-");
    switch (r->verdict) {
    case TSAR_IDENTICAL: add(&out, "identical"); break;
    case TSAR_SAME: add(&out, "same"); break;
    case TSAR_DIFFERS: add_difference(&out, r); break;
    case TSAR_NEAR_TIE:
        add(&out, "near-tie: %zu, first at ", r->bad);
        add_index(&out, r->rank, r->shape, r->first_bad);
        add(&out, ": %.0f here, %.0f there; gaps up to %.2g of what %s can decide", r->ours, r->theirs, r->margin, tsar_dtype_name(r->precision));
        break;
    case TSAR_MISSHAPEN:
        add(&out, "MISSHAPEN: it must be ");
        add_shape(&out, r->our_rank, r->our_shape);
        break;
    case TSAR_UNKNOWN: add(&out, "UNKNOWN NAME"); break;
    default: add(&out, "missing: the file does not hold it"); break;
    }
    if (r->words[0]) add(&out, ": %s", r->words);
    if (r->first) add(&out, "  <== first divergence");
}

/* ,"key":number; JSON knows no infinity: null. */
static void add_number(line *out, const char *key, double value)
{
    char number[32];
    if (fabs(value) < INFINITY)
        add(out, ",\"%s\":%s", key, tsar_real_text(number, value)); /* with a point under any locale */
    else
        add(out, ",\"%s\":null", key);
}

/* "key":"text" */
static void add_string(line *out, const char *key, const char *text)
{
    add(out, "\"%s\":\"", key);
    for (; *text; text++) add(out, *text == '"' || *text == '\\' ? "\\%c" : (unsigned char)*text < 32 ? "\\u%04x" : "%c", (unsigned char)*text);
    add(out, "\"");
}

void tsar_comparison_json(char *text, size_t size, const tsar_comparison *r)
{
    static const char *const measures[] = { "tensor", "row", "element" };
    line out = { text, size, 0 };
    const int measured = r->verdict <= TSAR_DIFFERS, floats = tsar_dtype_is_float(r->our_dtype);
    add_string(&out, "name", r->name);
    add(&out, ",\"verdict\":\"%s\",\"first\":%s,\"dtype\":\"%s\",\"precision\":\"%s\",\"shape\":", tsar_verdict_names[r->verdict], r->first ? "true" : "false",
        tsar_dtype_name(r->dtype), tsar_dtype_name(r->precision));
    add_shape(&out, r->rank, r->shape);
    if (r->verdict == TSAR_MISSHAPEN) {
        add(&out, ",\"expected_shape\":");
        add_shape(&out, r->our_rank, r->our_shape);
    }
    add_number(&out, "rms", measured ? r->rms : NAN);
    add_number(&out, "max", measured ? r->max : NAN);
    add_number(&out, "limit", measured ? r->limit : NAN);
    add(&out, ",\"bad\":%zu", r->bad);
    if (measured && floats) {
        add_number(&out, "excess", r->excess);
        add(&out, ",\"by\":\"%s\",\"row\":%zu,\"bad_rows\":%zu,\"place\":%zu", measures[r->by], r->row, r->bad_rows, r->place);
        if (r->from_inputs >= 0) add_number(&out, "from_inputs", r->from_inputs);
    }
    if (measured && !floats && r->bad) {
        add(&out, ",\"first_bad\":%zu", r->first_bad);
        add_number(&out, "margin", r->margin);
    }
    if (measured && (floats || r->bad)) {
        add_number(&out, "ours", r->ours);
        add_number(&out, "theirs", r->theirs);
    }
    if (r->passes_in != TSAR_F64) add(&out, ",\"passes_in\":\"%s\"", tsar_dtype_name(r->passes_in));
    if (r->words[0]) add(&out, ","), add_string(&out, "words", r->words);
}

void tsar_decision_json(char *text, size_t size, const tsar_decision_note *d)
{
    line out = { text, size, 0 };
    add(&out, "\"row\":%zu,\"column\":%zu,\"pass\":%zu,\"stage\":%d,\"ours\":%lld,\"theirs\":%lld,\"verdict\":\"%s\"", d->y, d->x, d->pass, d->fine ? 2 : 1,
        (long long)d->ours, (long long)d->theirs, tsar_verdict_names[d->verdict]);
    add_number(&out, "margin", d->margin);
}

/* ------------------------------------------------------------------------------------------------------- the whole file */

int tsar_counts_text(char *text, size_t size, const tsar_verify_counts *counts, size_t i)
{
    line out = { text, size, 0 };
    const size_t *n = counts->verdicts, different = n[TSAR_DIFFERS] + n[TSAR_MISSHAPEN] + n[TSAR_UNKNOWN];
    const size_t missing = n[TSAR_MISSING], ignored = counts->ignored;
    i += missing == 0;
    if (i == 0) add(&out, "not in the file, and so not compared: %s%s (%zu in all)", counts->missing_names, missing > NAMED ? ", ..." : "", missing);
    i += i > 0 && ignored == 0;
    if (i == 1) add(&out, "left alone: %s%s (%zu in all)", counts->ignored_names, ignored > NAMED ? ", ..." : "", ignored);
    i += i > 1 && !*counts->note;
    if (i == 2) add(&out, "note: %s", counts->note);
    if (i != 3) return i < 3;
    add(&out, "%zu tensors compared: %zu identical, %zu same", counts->compared, n[TSAR_IDENTICAL], n[TSAR_SAME]);
    if (n[TSAR_NEAR_TIE]) add(&out, ", %zu near-tie%s", n[TSAR_NEAR_TIE], n[TSAR_NEAR_TIE] > 1 ? "s" : "");
    add(&out, ", %zu different%s%s", different, *counts->first ? ", first " : "", counts->first);
    return 1;
}

void tsar_counts_json(char *text, size_t size, const tsar_verify_counts *counts, tsar_status status)
{
    line out = { text, size, 0 };
    add(&out, "\"compared\":%zu", counts->compared);
    for (int i = 0; i < TSAR_VERDICTS; i++) add(&out, ",\"%s\":%zu", tsar_verdict_names[i], counts->verdicts[i]);
    add(&out, ",\"ignored\":%zu,", counts->ignored);
    add_string(&out, "first", counts->first);
    add(&out, ",");
    add_string(&out, "note", counts->note);
    add(&out, ",\"verdict\":\"%s\"", status == TSAR_OK ? "same" : status == TSAR_DIFFERENT ? "different" : "error");
}
