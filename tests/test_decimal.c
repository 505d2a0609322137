/* Tests of weights/files/decimal.c: numbers to text and back against libc's own, where that is correctly rounded (glibc, musl), and cases that
 * are known to go wrong; then under a locale whose decimal point is a comma, if the machine has one. */
#include "../tsar.h"
#include "test.h"

#include <locale.h>
#include <math.h>
#include <stdlib.h>

static uint64_t state = 1;

static uint64_t random_word(void) { return tsar_mix(state += UINT64_C(0x9E3779B97F4A7C15)); }

static double random_double(void)
{
    const uint64_t bits = random_word();
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static int same_bits(double a, double b) { return memcmp(&a, &b, sizeof a) == 0; }

static void check_text(const char *text)
{
    double value = -1;
    const char *end;
    char *expected_end;
    const double expected = strtod(text, &expected_end);
    const int is_number = tsar_real_read(&value, text, &end);
    CHECK(is_number == (expected_end != text), "%s is %s number", text, is_number ? "a" : "no");
    if (is_number)
        CHECK(same_bits(value, expected) && end == expected_end, "%.60s is %.17g to its byte %d, not %.17g", text, expected, (int)(expected_end - text), value);
}

/* The shortest of 15, 16, 17 digits, by libc. */
static void check_value(double value)
{
    char text[32], expected[32];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(expected, sizeof expected, "%.*g", digits, value);
        if (same_bits(strtod(expected, NULL), value)) break;
    }
    CHECK(strcmp(tsar_real_text(text, value), expected) == 0, "%s is written as %s", expected, text);
}

static void test_known(void)
{
    static const char *const texts[] = {
        "0",
        "-0",
        "+1",
        "1.",
        ".5",
        "-.5e1",
        "1e",
        "1e+",
        "1e5x",
        ".",
        "",
        "e5",
        "-",
        "+-1",
        "00012.500",
        "1e400",
        "-1e400",
        "1e-400",
        "1e999999999999",
        "1e-999999999999",
        "0e999999999999",
        "5e-324",
        "2.4703282292062327e-324",
        "2.4703282292062328e-324",
        "2.2250738585072011e-308",
        "2.2250738585072012e-308",
        "2.2250738585072014e-308",
        "4.9406564584124654e-324",
        "1.7976931348623157e308",
        "1.7976931348623158e308",
        "1.7976931348623159e308",
        ("17976931348623158079372897140530341507993413271003782693617"
         "3778980444968292764750946649017977587207096330286416692887910946555547851940402630657488671"
        "505820681908902000708383676273854845817711531764475730270069855571366959622842914819860834936475292719074168444365510704342711559699508093042880"),
        "9007199254740993",
        "9007199254740992.5",
        "9007199254740993.00000000000000000000000000000000001",
        "9007199254740991.5",
        "6.02214076e23",
        "1e22",
        "1e23",
        "123456789012345678901234567890",
        "0.1",
        "0.2",
        "0.3",
        "1e-5",
        "1e-05",
        "7.5",
        "10000.0",
        "0.00001",
        "1.00000000000000011102230246251565404236316680908203125",
        "1.00000000000000011102230246251565404236316680908203124",
        "1.00000000000000011102230246251565404236316680908203126",
        "8.5e-310",
        "3.0e-310"
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) check_text(texts[i]);
    static const double values[] = { 0,
                                     1,
                                     -1,
                                     0.1,
                                     1e15,
                                     1e16,
                                     1e17,
                                     1e22,
                                     1e23,
                                     123456,
                                     0.0001,
                                     0.00001,
                                     5e-324,
                                     2.2250738585072014e-308,
                                     1.7976931348623157e308,
                                     9.9999999999999995,
                                     9.5,
                                     1e-5,
                                     7.5,
                                     100,
                                     3.141592653589793,
                                     999999999999999.9,
                                     2e-44 };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) check_value(values[i]);
    double value;
    CHECK(!tsar_real_read(&value, "1x", NULL) && !tsar_real_read(&value, "nan", NULL) && !tsar_real_read(&value, "inf", NULL) &&
              !tsar_real_read(&value, " 1", NULL),
          "no number");
    CHECK(tsar_real_read(&value, "1e4", NULL) && same_bits(value, 1e4), "1e4 is %g", value);
    CHECK(!tsar_real_read(&value, "0x10", NULL), "hexadecimal");
}

static void test_random(void)
{
    char text[900];
    for (int i = 0; i < 60000; i++) {
        const double value = random_double();
        if (!(fabs(value) < INFINITY)) continue;
        check_value(value);
        snprintf(text, sizeof text, "%.*e", (int)(random_word() >> 60) + 3, value);
        check_text(text);
    }
    for (int i = 0; i < 20000; i++) { /* decimal numbers as people write them */
        const double value = (double)(random_word() >> 40) / 1000;
        check_value(value);
        snprintf(text, sizeof text, "%.3f", value);
        check_text(text);
    }
    for (int i = 0; i < 2000; i++) { /* ties, exactly, and one digit more or less: halfway between a double and the next */
        const double value = fabs(random_double()), next = nextafter(value, INFINITY);
        if (!(next < 1e300) || value < 1e-290) continue;
        int exponent;
        (void)frexp(value, &exponent);
        if (exponent < -200 || exponent > 200) continue;
        snprintf(text, sizeof text, "%.800f", value); /* exact; the half of the last place is added by hand below */
        check_text(text);
        char *point = strchr(text, '.'), *last = text + strlen(text) - 1;
        while (*last == '0' && last > point) last--;
        if (last > point && *last == '5') {
            *last = '4', check_text(text);
            *last = '6', check_text(text);
        }
    }
    for (int i = 0; i < 2000; i++) { /* long digit strings */
        size_t n = 1 + (size_t)(random_word() % 800);
        for (size_t k = 0; k < n; k++) text[k] = (char)('0' + random_word() % 10);
        if (n > 3 && i % 2) text[random_word() % n] = '.';
        snprintf(text + n, sizeof text - n, "e%d", (int)(random_word() % 700) - 350 - (int)n / 2);
        check_text(text);
    }
}

/* 2^53 + 1 is a tie, and so is every odd number above it: the rule of the even neighbour, with and without something behind it. */
static void test_ties(void)
{
    char text[80];
    for (uint64_t i = 0; i < 2000; i++) {
        const uint64_t odd = (UINT64_C(1) << 53) + 2 * (random_word() >> 12) + 1;
        snprintf(text, sizeof text, "%llu", (unsigned long long)odd);
        check_text(text);
        snprintf(text, sizeof text, "%llu.000000000000000000000000000001", (unsigned long long)odd);
        check_text(text);
        snprintf(text, sizeof text, "%llu.999999999999999999999999999999", (unsigned long long)(odd - 1));
        check_text(text);
    }
}

static void test_locale(void)
{
    static const char *const names[] = { "de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "de_DE", "ru_RU.UTF-8" };
    char text[32];
    double value;
    size_t i = 0;
    while (i < sizeof names / sizeof *names && !setlocale(LC_ALL, names[i])) i++;
    if (i == sizeof names / sizeof *names) printf("this machine has no locale with a decimal comma: not tested\n");
    CHECK(strcmp(tsar_real_text(text, 1.5), "1.5") == 0 && tsar_real_read(&value, "2.25", NULL) && same_bits(value, 2.25), "%s under another locale", text);
    setlocale(LC_ALL, "C");
}

int main(void)
{
    test_known();
    test_ties();
    test_random();
    test_locale();
    return test_end();
}
