/* test_words.c - words that are new to a model, and words that are drawn in pictures. */
#include "../tsar.h"
#include "test.h"

/* ---------------------------------------------------------------------------------------------------------- new words */

/* All new words of a prompt, a bar behind each. */
static const char *new_words(char *known, const char *prompt)
{
    static char words[200];
    tsar_model model = { .known_words = known };
    size_t used = 0, length = 0;
    words[0] = '\0';
    for (size_t at = tsar_text_new_word(&model, prompt, 0, &length); at != SIZE_MAX; at = tsar_text_new_word(&model, prompt, at + length, &length))
        used += (size_t)snprintf(words + used, sizeof words - used, "%.*s|", (int)length, prompt + at);
    return words;
}

static void test_new_words(void)
{
    char known[] = "a above blue circle red ring", none[] = "", one[] = "red";
    static const char *const cases[][2] = { { "a red ring above a blue circle", "" },
                                            { "", "" },
                                            { "   ", "" },
                                            { "red", "" },
                                            { "elephant", "elephant|" },
                                            { " a  red elephant under umbrellas ", "elephant|under|umbrellas|" },
                                            { "two elephants and two elephants", "two|elephants|and|" },
                                            { "re ed redr ring, rin", "re|ed|redr|ring,|rin|" }, /* parts of known words and more than them */
                                            { "Red red RED", "Red|RED|" },
                                            { "elephants elephant ele", "elephants|elephant|ele|" }, /* parts of new words */
                                            { "a\tring", "a\tring|" } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        CHECK(strcmp(new_words(known, cases[i][0]), cases[i][1]) == 0, "new in '%s': '%s'", cases[i][0], new_words(known, cases[i][0]));
    CHECK(strcmp(new_words(NULL, "any word"), "") == 0, "a model that does not tell its words");
    CHECK(strcmp(new_words(none, "any word"), "any|word|") == 0, "a model that knows no word");
    CHECK(strcmp(new_words(one, "red ring"), "ring|") == 0, "a model that knows one word");
}

/* -------------------------------------------------------------------------------------------------------- drawn words */

enum { H = 30, W = 40 };

/* Draws in white on black; returns the number of pixels that are not black, or 0 if one lies outside [left, right) x [top, bottom). */
static size_t draw(uint8_t *rgb, size_t x, size_t y, size_t width, size_t dot, const char *text, const size_t box[4])
{
    static const uint8_t white[3] = { 255, 255, 255 };
    size_t n = 0;
    memset(rgb, 0, H * W * 3);
    (void)tsar_image_text(rgb, H, W, x, y, width, dot, white, text);
    for (size_t i = 0; i < H * W; i++) {
        if (!rgb[3 * i]) continue;
        if (i % W < box[0] || i % W >= box[1] || i / W < box[2] || i / W >= box[3]) return 0;
        n++;
    }
    return n;
}

static size_t lines(size_t width, size_t dot, const char *text) { return tsar_image_text(NULL, 0, 0, 0, 0, width, dot, NULL, text); }

static void test_drawn_words(void)
{
    static uint8_t all[95][H * W * 3], guarded[H * W * 3 + 64];
    const size_t box[4] = { 3, 3 + 5, 4, 4 + 9 }, everywhere[4] = { 0, W, 0, H };
    for (size_t c = 0; c < 95; c++) {
        const char text[2] = { (char)(' ' + c), '\0' };
        const size_t n = draw(all[c], 3, 4, 5, 1, text, box), width = tsar_image_text_width(text, 1);
        CHECK(c == 0 ? n == 0 : n > 0, "character %d has %lu points in its cell", text[0], (unsigned long)n);
        CHECK(width >= 1 && width <= 5, "character %d is %lu points wide", text[0], (unsigned long)width);
        size_t other = 0;
        while (memcmp(all[c], all[other], sizeof all[c]) != 0) other++;
        CHECK(other == c, "characters %d and %d look the same", text[0], (int)(' ' + other));
    }
    CHECK(draw(guarded, 0, 0, 5, 1, "\x01", everywhere) > 0 && memcmp(guarded, (draw(all[0], 0, 0, 5, 1, "?", everywhere), all[0]), H * W * 3) == 0,
          "what it cannot draw is a question mark");

    /* Widths add up, with a blank column between characters; points become dots. */
    CHECK(tsar_image_text_width("ab", 2) == tsar_image_text_width("a", 1) + 1 + tsar_image_text_width("b", 1), "width of two characters");
    CHECK(tsar_image_text_width("", 0) == 0, "width of nothing");
    CHECK(draw(all[1], 3, 4, 40, 2, "#", everywhere) == 4 * draw(all[0], 3, 4, 40, 1, "#", everywhere), "a point of two pixels is four of them");

    /* Lines: a text fits into its own width and not into less; words stay whole where they can. */
    const char *text = "a ring above";
    const size_t whole = tsar_image_text_width(text, 12), last = tsar_image_text_width("above", 5);
    CHECK(lines(whole, 1, text) == 1 && lines(whole - 1, 1, text) == 2, "broken when it does not fit");
    CHECK(lines(2 * whole, 2, text) == 1 && lines(2 * whole - 1, 2, text) == 2, "broken in pixels");
    CHECK(lines(last, 1, text) == 2, "as many words in a line as fit");
    CHECK(lines(last - 1, 1, text) == 3, "a word that is wider than the line is broken");
    CHECK(lines(0, 1, text) == 10, "at least one character in a line");
    CHECK(lines(0, 1, "") == 0 && lines(100, 1, " ") == 1, "empty text");
    const size_t second[4] = { 0, last, TSAR_LINE, 2 * TSAR_LINE };
    const size_t both = draw(all[0], 0, 0, last, 1, "above above", everywhere);
    CHECK(both == 2 * draw(all[1], 0, TSAR_LINE, last, 1, "above", second), "the second line lies below the first");

    /* Nothing is written outside the picture. */
    memset(guarded, 77, sizeof guarded);
    (void)draw(guarded, W - 3, H - 3, 100, 3, "clipped text here", everywhere);
    (void)draw(guarded, 2 * W, 0, 100, 1, "clipped", everywhere);
    int intact = 1;
    for (size_t i = H * W * 3; i < sizeof guarded; i++) intact &= guarded[i] == 77;
    CHECK(intact, "bytes behind the picture");
    CHECK(draw(guarded, W, 0, 100, 1, "clipped", everywhere) == 0, "text beside the picture is not drawn into its next row");
}

int main(void)
{
    test_new_words();
    test_drawn_words();
    return test_end();
}
