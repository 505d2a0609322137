/* Decimal numbers to double and back, correctly rounded (to nearest, ties to even), whatever the locale is and whatever libc does.
 *
 * Both ways are one question: which integer is nearest to a fraction of two large integers? They are held in words of 32 bits; the
 * quotient, below 2^64, comes out of a division bit by bit. Most numbers need none of this: up to 15 digits and 10^22 are doubles
 * themselves, and one multiplication or division of exact doubles is rounded correctly (Clinger 1990). */
#include "files.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* A double has at most 767 decimal digits; more than that and one for all others cannot lie nearer to a tie. The largest integer met is
 * 10^(MOST_DIGITS + 342), or 2^1130 times 10^342. */
enum { MOST_DIGITS = 780, WORDS = 128 };

typedef struct {
    size_t n; /* words in use, the highest is not 0 */
    uint32_t word[WORDS];
} big;

static void big_set(big *a, uint64_t value)
{
    a->word[0] = (uint32_t)value;
    a->word[1] = (uint32_t)(value >> 32);
    a->n = value >> 32 ? 2 : value ? 1 : 0;
}

/* a = a * factor + add. */
static void big_multiply(big *a, uint32_t factor, uint32_t add)
{
    uint64_t carry = add;
    for (size_t i = 0; i < a->n; i++) {
        carry += (uint64_t)a->word[i] * factor;
        a->word[i] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry && a->n < WORDS) a->word[a->n++] = (uint32_t)carry;
}

static void big_times_ten(big *a, unsigned power)
{
    for (; power >= 9; power -= 9) big_multiply(a, 1000000000u, 0);
    for (; power > 0; power--) big_multiply(a, 10u, 0);
}

static void big_shift(big *a, unsigned bits)
{
    const size_t words = bits / 32;
    big_multiply(a, (uint32_t)1 << bits % 32, 0);
    if (words == 0 || a->n == 0 || a->n + words > WORDS) return;
    memmove(a->word + words, a->word, a->n * sizeof *a->word);
    memset(a->word, 0, words * sizeof *a->word);
    a->n += words;
}

static int big_compare(const big *a, const big *b)
{
    if (a->n != b->n) return a->n < b->n ? -1 : 1;
    for (size_t i = a->n; i-- > 0;)
        if (a->word[i] != b->word[i]) return a->word[i] < b->word[i] ? -1 : 1;
    return 0;
}

/* a = a - b, which is not larger. */
static void big_subtract(big *a, const big *b)
{
    uint64_t borrow = 0;
    for (size_t i = 0; i < a->n; i++) {
        const uint64_t difference = (uint64_t)a->word[i] - (i < b->n ? b->word[i] : 0) - borrow;
        a->word[i] = (uint32_t)difference;
        borrow = difference >> 63;
    }
    while (a->n > 0 && a->word[a->n - 1] == 0) a->n--;
}

static unsigned big_bits(const big *a)
{
    unsigned bits = (unsigned)a->n * 32;
    for (uint32_t top = a->n ? a->word[a->n - 1] : 1; top < 0x80000000u && bits > 0; top <<= 1) bits--;
    return a->n ? bits : 0;
}

/* floor(a / b), below 2^64, and a becomes the remainder. b is not 0. */
static uint64_t big_divide(big *a, const big *b)
{
    uint64_t quotient = 0;
    const unsigned x = big_bits(a), y = big_bits(b);
    for (unsigned shift = x >= y ? x - y + 1 : 0; shift-- > 0;) {
        big shifted = *b;
        big_shift(&shifted, shift);
        quotient <<= 1;
        if (big_compare(a, &shifted) >= 0) {
            big_subtract(a, &shifted);
            quotient |= 1;
        }
    }
    return quotient;
}

/* ------------------------------------------------------------------------------------------------------ text to double */

/* The double nearest to numerator / denominator, both positive. */
static double nearest(big *numerator, big *denominator)
{
    int exponent = (int)big_bits(numerator) - (int)big_bits(denominator) - 1; /* 2^exponent <= n/d < 2^(exponent + 2) */
    if (exponent < DBL_MIN_EXP - 1) exponent = DBL_MIN_EXP - 1;
    const int shift = DBL_MANT_DIG - 1 - exponent; /* the quotient is then the fraction, of 53 or 54 bits, fewer for subnormals */
    if (shift >= 0)
        big_shift(numerator, (unsigned)shift);
    else
        big_shift(denominator, (unsigned)-shift);
    uint64_t fraction = big_divide(numerator, denominator);
    const int wide = (int)(fraction >> DBL_MANT_DIG); /* 54 bits: the last one is rounded away with the remainder */
    if (wide) {
        const int tie = numerator->n == 0;
        fraction = (fraction >> 1) + ((fraction & 1) && (!tie || (fraction & 2)));
    } else {
        big_shift(numerator, 1);
        const int order = big_compare(numerator, denominator);
        fraction += order > 0 || (order == 0 && (fraction & 1));
    }
    return ldexp((double)fraction, wide - shift);
}

/* digits[0 ... n-1] * 10^power. */
static double scaled(const char *digits, size_t n, int power)
{
    static const double tens[] = { 1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                   1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22 };
    big numerator, denominator;
    if (n == 0 || (int)n + power < -330) return 0;
    if ((int)n + power > 310) return INFINITY;
    big_set(&numerator, 0);
    big_set(&denominator, 1);
    if (n <= 15 && power >= -22 && power <= 22) {
        double value = 0;
        for (size_t i = 0; i < n; i++) value = value * 10 + (digits[i] - '0');
        return power < 0 ? value / tens[-power] : value * tens[power];
    }
    for (size_t i = 0; i < n; i++) big_multiply(&numerator, 10, (uint32_t)(digits[i] - '0'));
    big_times_ten(power < 0 ? &denominator : &numerator, (unsigned)(power < 0 ? -power : power));
    return nearest(&numerator, &denominator);
}

/* The digits of a number without leading zeros, at most MOST_DIGITS of them, the last one then standing for all that are not 0. */
typedef struct {
    char digit[MOST_DIGITS + 1];
    size_t n;
    int power; /* of ten, by which the digits are to be multiplied */
    int any;   /* a digit was there, be it a 0 */
} digit_list;

static const char *read_digits(digit_list *list, const char *text, int fraction)
{
    enum { FAR = 100000 }; /* beyond every exponent */
    for (; *text >= '0' && *text <= '9'; text++) {
        const int kept = list->n < MOST_DIGITS && (list->n > 0 || *text != '0');
        list->any = 1;
        if (kept) list->digit[list->n++] = *text;
        if (list->n == MOST_DIGITS && !kept && *text != '0') list->digit[MOST_DIGITS] = '1';
        if (kept || list->n == 0 ? fraction : !fraction) list->power += fraction ? -1 : list->power < FAR;
        if (list->power < -FAR) list->power = -FAR;
    }
    return text;
}

int tsar_real_read(double *value, const char *text, const char **end)
{
    enum { FAR = 100000 };
    digit_list list;
    memset(&list, 0, sizeof list);
    const int negative = *text == '-';
    text += *text == '-' || *text == '+';
    text = read_digits(&list, text, 0);
    if (*text == '.') text = read_digits(&list, text + 1, 1);
    if (!list.any) return 0;
    const char *e = text + 1;
    const int down = (*text == 'e' || *text == 'E') && *e == '-';
    if ((*text == 'e' || *text == 'E') && (*e == '-' || *e == '+')) e++;
    if ((*text == 'e' || *text == 'E') && *e >= '0' && *e <= '9') {
        int exponent = 0;
        for (; *e >= '0' && *e <= '9'; e++)
            if (exponent < 2 * FAR) exponent = exponent * 10 + (*e - '0');
        list.power += down ? -exponent : exponent;
        text = e;
    }
    if (list.digit[MOST_DIGITS]) list.n++, list.power--;
    const double magnitude = scaled(list.digit, list.n, list.power);
    *value = negative ? -magnitude : magnitude;
    if (end) *end = text;
    return end != NULL || *text == 0;
}

/* ------------------------------------------------------------------------------------------------------ double to text */

/* The integer nearest to value / 10^power, value positive. */
static uint64_t nearest_count(double value, int power)
{
    int exponent;
    big numerator, denominator;
    const double fraction = frexp(value, &exponent); /* value = fraction 2^exponent, fraction 2^53 an integer */
    big_set(&numerator, (uint64_t)ldexp(fraction, DBL_MANT_DIG));
    big_set(&denominator, 1);
    exponent -= DBL_MANT_DIG;
    big_times_ten(power < 0 ? &numerator : &denominator, (unsigned)(power < 0 ? -power : power));
    big_shift(exponent < 0 ? &denominator : &numerator, (unsigned)(exponent < 0 ? -exponent : exponent));
    const uint64_t count = big_divide(&numerator, &denominator);
    big_shift(&numerator, 1);
    const int order = big_compare(&numerator, &denominator);
    return count + (order > 0 || (order == 0 && (count & 1)));
}

/* value, positive and finite, in `digits` digits: their number in *count, below 10^digits, the exponent of the first one returned. */
static int round_to_digits(uint64_t *count, double value, int digits)
{
    uint64_t most = 1;
    for (int i = 0; i < digits; i++) most *= 10;
    int first = (int)floor(log10(value)) + 1; /* of the right exponent and the two above it */
    *count = nearest_count(value, first + 1 - digits);
    while (*count <= most / 10) { /* too large, unless the number was rounded up to a power of ten */
        const uint64_t finer = nearest_count(value, first - digits);
        if (finer >= most) break;
        *count = finer, first--;
    }
    return first;
}

/* As printf's %.*g does it in the C locale: without trailing zeros, with an exponent below 10^-4 and from 10^digits on. */
static char *put_digits(char *text, uint64_t count, int digits, int exponent)
{
    char digit[20];
    const int fixed = exponent >= -4 && exponent < digits, point = fixed ? exponent : 0; /* behind which digit it stands */
    for (int i = digits; i-- > 0; count /= 10) digit[i] = (char)('0' + count % 10);
    while (digits > 1 && digit[digits - 1] == '0') digits--;
    for (int i = point < 0 ? point : 0; i < digits || i <= point; i++) {
        *text++ = i >= 0 && i < digits ? digit[i] : '0';
        if (i == point && i + 1 < digits) *text++ = '.';
    }
    if (fixed) return text;
    const int size = exponent < 0 ? -exponent : exponent;
    *text++ = 'e', *text++ = exponent < 0 ? '-' : '+';
    if (size >= 100) *text++ = (char)('0' + size / 100);
    *text++ = (char)('0' + size / 10 % 10), *text++ = (char)('0' + size % 10);
    return text;
}

const char *tsar_real_text(char *text, double value)
{
    char *end = text;
    const double magnitude = fabs(value);
    if (copysign(1.0, value) < 0.0) *end++ = '-'; /* signbit narrows to float on Windows, with a warning */
    if (!(magnitude < INFINITY)) {
        strcpy(end, magnitude > 0 ? "inf" : "nan");
        return text;
    }
    if (!(magnitude > 0)) {
        strcpy(end, "0");
        return text;
    }
    for (int digits = 15; digits <= 17; digits++) {
        uint64_t count;
        double back = 0;
        const int first = round_to_digits(&count, magnitude, digits);
        *put_digits(end, count, digits, first) = 0;
        if (tsar_real_read(&back, end, NULL) && !(back < magnitude) && !(back > magnitude)) break;
    }
    return text;
}
