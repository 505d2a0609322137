/* Text (weights/unicode.c, split.c, bpe.c): what the tokenizers share. No part of the library's interface: programs see tsar.h only. */
#ifndef TSAR_TEXT_H
#define TSAR_TEXT_H

#include "../tsar.h"

/* ------------------------------------------------------------------------------------------------ characters (unicode.c) */

/* Classes of characters, as the regex engines of the published tokenizers have them (QUIRKS-bpe, E). */
typedef enum {
    TSAR_LETTER,          /* \p{L} */
    TSAR_NUMBER,          /* \p{N} */
    TSAR_BLANK,           /* \s */
    TSAR_PUNCTUATION,     /* \p{P} */
    TSAR_OLD_PUNCTUATION, /* ASCII signs and Unicode 8.0's P: tokenizers' Punctuation */
    TSAR_DIGIT,           /* tokenizers' Digits */
    TSAR_DEEPSEEK_LETTER, TSAR_DEEPSEEK_SIGN, TSAR_DEEPSEEK_CJK /* the classes that DeepSeek-LLM's patterns list */
} tsar_class;

int tsar_char_is(tsar_class which, uint32_t code);
/* The ranges [first, last] of a class, *n of them, ascending. */
const uint32_t (*tsar_class_ranges(tsar_class which, size_t *n))[2];

/* The character at the start of `bytes` bytes of UTF-8, at least one; *length its bytes. What is no UTF-8 counts as one byte, U+FFFD. */
uint32_t tsar_char_at(const char *text, size_t bytes, size_t *length);
/* Writes a character as UTF-8 into out [4]; returns its bytes. */
size_t tsar_char_put(char *out, uint32_t code);

/* Normalization form C (Unicode annex 15) of UTF-8 text: *out [*out_bytes] is the caller's to tsar_free. */
tsar_status tsar_nfc(const char *text, size_t bytes, char **out, size_t *out_bytes, tsar_error *err);

/* ------------------------------------------------------------------------------------------------------- pieces (split.c) */

/* Marks in cut [bytes + 1], which is zeroed, where the pieces of a stretch of text begin by the rule `split` (QUIRKS-bpe, B to D); cut[0] and
 * cut[bytes] are set too. A piece never sees its neighbours. */
void tsar_split_text(unsigned char *cut, const char *text, size_t bytes, tsar_split split);

/* One step of a published tokenizer.json's pre_tokenizer. */
typedef enum { TSAR_STEP_PATTERN, TSAR_STEP_DIGITS, TSAR_STEP_PUNCTUATION, TSAR_STEP_GPT2, TSAR_STEP_BYTES } tsar_step_kind;
typedef struct {
    tsar_step_kind kind;
    const char *pattern; /* of TSAR_STEP_PATTERN */
} tsar_step;
/* The rule that these n steps spell, compared as a whole; 0 if it is none that is built in, and *odd is the first step that no rule has there. */
int tsar_split_recognise(tsar_split *split, const tsar_step *steps, size_t n, size_t *odd);

/* --------------------------------------------------------------------------------------------------- byte pairs (bpe.c) */

size_t tsar_bytes_hash(const void *bytes, size_t n); /* FNV-1a, folded */
void tsar_pieces_close(tsar_pieces *pieces);
/* Takes off what tsar_bpe_open made, and nothing else. */
void tsar_bpe_unindex(tsar_bpe *bpe);
/* Of merges of the same pair only the last one stays. Before tsar_bpe_open. */
tsar_status tsar_bpe_drop_repeated(tsar_bpe *bpe, tsar_error *err);
/* unreached[i] = 1 where bytes and merges do not make piece i's id of its bytes. */
tsar_status tsar_bpe_unreached(const tsar_bpe *bpe, const tsar_pieces *pieces, unsigned char *unreached, tsar_error *err);

/* ------------------------------------------------------------------------------------------------- patterns (pattern.c) */

/* A pattern is a row of items, tried in order with backtracking, longest first:
 *     x  %x   one character: itself; %a letter, %d digit, %D none, %w letter, digit or _, %s blank, %S none, %. %- and so on themselves
 *     [xyz]   one of these, %a to %S among them
 *     ? * +   behind a character: 0 or 1, any number, at least one; {m,n}: m to n
 *     (a|b)   one of the words; ? behind it: or nothing
 *     %b      a border between word and other characters;  %!x  not followed by x;  ^ $  the ends of the text
 * The text is ASCII. Where the match of a pattern that begins at `at` in the text from start to end ends; NULL if there is none. */
const char *tsar_pattern_match(const char *start, const char *end, const char *pattern, const char *at);

#endif
