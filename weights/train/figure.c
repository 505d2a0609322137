/* The study's figure: see figure.h. Lines, bars and marks are painted by their signed distance d: a pixel is covered by clamp(1/2 - d), as in
 * scenes.c; the marks are the world's own shapes. */
#include "figure.h"
#include "shapes.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define WIDE 1400
#define HIGH 1000
#define LEFT 96 /* of the axes, in pixels; the picture is made to be shown at half its size */
#define RIGHT 1376
#define TOP 130
#define BOTTOM 890
#define LINE_WIDTH 3.5
#define MARK 9.0 /* radius */
#define DOT 3    /* of the typeface */
#define MAX_POINTS 64
#define MAX_SERIES 8

typedef struct {
    char series[64], label[32], side[8];
    double passes, share, low, high;
    size_t style;
} point;

typedef struct {
    char title[128];
    point points[MAX_POINTS];
    size_t n, n_series;
    double least, most; /* log2 of passes at the ends of the axis */
    uint8_t *rgb;       /* [HIGH][WIDE][3] */
} figure;

/* Colours that readers without red or green can tell apart (Okabe and Ito, 2008), each with a mark of its own. */
static const struct style {
    uint8_t colour[3];
    int mark;
} styles[MAX_SERIES] = { { { 0, 0, 0 }, SCENE_CIRCLE },     { { 213, 94, 0 }, SCENE_SQUARE },     { { 230, 159, 0 }, SCENE_TRIANGLE },
                         { { 0, 114, 178 }, SCENE_SQUARE }, { { 86, 180, 233 }, SCENE_TRIANGLE }, { { 0, 158, 115 }, SCENE_CROSS },
                         { { 204, 121, 167 }, SCENE_STAR }, { { 120, 120, 120 }, SCENE_RING } };
static const uint8_t ink[3] = { 30, 30, 30 }, grey[3] = { 110, 110, 110 }, pale[3] = { 226, 226, 226 };

/* ------------------------------------------------------------------------------------------------------------ reading */

/* The next field of a line, cut off behind it; NULL at its end. */
static char *next_field(char **line)
{
    char *field = *line, *tab = field ? strchr(field, '\t') : NULL;
    if (tab) *tab = 0;
    *line = tab ? tab + 1 : NULL;
    return field;
}

static int copy_text(char *to, size_t room, const char *text)
{
    const size_t n = text ? strlen(text) : room;
    if (n >= room) return 0;
    memcpy(to, text, n + 1);
    return 1;
}

/* 1 if the line is a point. */
static int read_point(point *p, char *line)
{
    double *const numbers[4] = { &p->passes, &p->share, &p->low, &p->high };
    const char *end;
    if (!copy_text(p->series, sizeof p->series, next_field(&line)) || !copy_text(p->label, sizeof p->label, next_field(&line)) ||
        !copy_text(p->side, sizeof p->side, next_field(&line)))
        return 0;
    for (size_t i = 0; i < 4; i++) {
        const char *field = next_field(&line);
        if (!field || !tsar_real_read(numbers[i], field, &end) || *end) return 0;
    }
    return !line && p->passes >= 1.0 && p->passes <= 1e9 && p->low >= 0.0 && p->low <= p->share && p->share <= p->high && p->high <= 1.0;
}

/* Series in the order in which they come. */
static tsar_status place_point(figure *f, tsar_error *err)
{
    point *p = &f->points[f->n];
    size_t i = 0;
    while (i < f->n && strcmp(f->points[i].series, p->series) != 0) i++;
    p->style = i < f->n ? f->points[i].style : f->n_series;
    if (i == f->n && ++f->n_series > MAX_SERIES) return tsar_fail(err, TSAR_INPUT, "the figure has room for %d series; %s is one more", MAX_SERIES, p->series);
    f->n++;
    return TSAR_OK;
}

static tsar_status read_points(figure *f, tsar_error *err)
{
    char line[512];
    tsar_status status = TSAR_OK;
    for (size_t number = 1; status == TSAR_OK && fgets(line, sizeof line, stdin); number++) {
        line[strcspn(line, "\r\n")] = 0;
        if (number == 1 ? !copy_text(f->title, sizeof f->title, line) : f->n == MAX_POINTS || !read_point(&f->points[f->n], line))
            status =
                tsar_fail(err, TSAR_INPUT, "line %zu of standard input is no point of a figure, or one beyond %d (weights/train/figure.h says what a point is)",
                          number, MAX_POINTS);
        else if (number > 1)
            status = place_point(f, err);
    }
    if (status == TSAR_OK && f->n == 0) status = tsar_fail(err, TSAR_INPUT, "standard input has no point of a figure");
    return status;
}

/* ----------------------------------------------------------------------------------------------------------- painting */

static void cover(figure *f, size_t x, size_t y, double distance, const uint8_t colour[3])
{
    const double part = distance <= -0.5 ? 1.0 : 0.5 - distance;
    uint8_t *pixel = f->rgb + (y * WIDE + x) * 3;
    for (size_t c = 0; c < 3 && part > 0.0; c++) pixel[c] = (uint8_t)floor(pixel[c] + part * ((double)colour[c] - pixel[c]) + 0.5);
}

/* First and last pixel that something within `reach` of low ... high may touch. */
static size_t first_pixel(double low, double reach) { return low - reach > 1.0 ? (size_t)(low - reach - 1.0) : 0; }
static size_t last_pixel(double high, double reach, size_t n) { return high + reach + 1.0 < (double)n ? (size_t)(high + reach + 1.0) : n - 1; }

/* A line from (x0, y0) to (x1, y1) with round ends. */
static void draw_line(figure *f, double x0, double y0, double x1, double y1, double width, const uint8_t colour[3])
{
    const double dx = x1 - x0, dy = y1 - y0, length = dx * dx + dy * dy;
    const size_t right = last_pixel(x0 > x1 ? x0 : x1, width, WIDE), bottom = last_pixel(y0 > y1 ? y0 : y1, width, HIGH);
    for (size_t y = first_pixel(y0 < y1 ? y0 : y1, width); y <= bottom; y++)
        for (size_t x = first_pixel(x0 < x1 ? x0 : x1, width); x <= right; x++) {
            const double px = (double)x + 0.5 - x0, py = (double)y + 0.5 - y0;
            double t = length > 0.0 ? (px * dx + py * dy) / length : 0.0;
            t = t < 0.0 ? 0.0 : t > 1.0 ? 1.0 : t;
            const double ex = px - t * dx, ey = py - t * dy;
            cover(f, x, y, sqrt(ex * ex + ey * ey) - 0.5 * width, colour);
        }
}

static void draw_mark(figure *f, double at_x, double at_y, double radius, const struct style *style)
{
    const double reach = radius * shape_extent(style->mark);
    for (size_t y = first_pixel(at_y, reach); y <= last_pixel(at_y, reach, HIGH); y++)
        for (size_t x = first_pixel(at_x, reach); x <= last_pixel(at_x, reach, WIDE); x++)
            cover(f, x, y, shape_distance(style->mark, ((double)x + 0.5 - at_x) / radius, ((double)y + 0.5 - at_y) / radius) * radius, style->colour);
}

/* Text with its left end, its middle or its right end at x (anchor 0, 0.5, 1), its capitals around y, on a rim of white that keeps lines off it. */
static void draw_text(figure *f, double x, double y, double anchor, const uint8_t colour[3], const char *text)
{
    static const uint8_t white[3] = { 255, 255, 255 };
    const double left = x - anchor * (double)(tsar_image_text_width(text, strlen(text)) * DOT), top = y - 3.5 * DOT;
    const size_t at_x = left > DOT ? (size_t)left : DOT, at_y = top > DOT ? (size_t)top : DOT;
    for (size_t k = 0; k < 9; k++) (void)tsar_image_text(f->rgb, HIGH, WIDE, at_x + k % 3 * DOT - DOT, at_y + k / 3 * DOT - DOT, WIDE, DOT, white, text);
    (void)tsar_image_text(f->rgb, HIGH, WIDE, at_x, at_y, WIDE, DOT, colour, text);
}

static double x_of(const figure *f, double log_passes) { return LEFT + (RIGHT - LEFT) * (log_passes - f->least) / (f->most - f->least); }
static double y_of(double share) { return BOTTOM - (BOTTOM - TOP) * share; }
static double log2_of(double x) { return tsar_log(x) / 0.69314718055994531; }

/* Shares from 0 to 1, passes at powers of two. */
static void draw_axes(figure *f)
{
    char text[32];
    for (int k = 0; k <= 5; k++) {
        const double y = y_of(0.2 * k);
        draw_line(f, LEFT, y, RIGHT, y, 2.0, k ? pale : ink);
        snprintf(text, sizeof text, "%.1f", 0.2 * k);
        draw_text(f, LEFT - 12, y, 1.0, ink, text);
    }
    for (int k = (int)ceil(f->least); (double)k <= f->most; k++) {
        const double x = x_of(f, k);
        draw_line(f, x, BOTTOM, x, BOTTOM + 10, 2.0, ink);
        snprintf(text, sizeof text, "%.0f", pow(2.0, k));
        draw_text(f, x, BOTTOM + 30, 0.5, ink, text);
    }
    draw_text(f, 0.5 * (LEFT + RIGHT), BOTTOM + 76, 0.5, ink, "forward passes of a picture, logarithmic");
    draw_text(f, 24, 34, 0.0, ink, f->title);
    draw_text(f, 24, 84, 0.0, grey, "share of pictures that are right; bars are 95 % intervals");
}

/* Beside the mark, or beyond an end of the bar. */
static void draw_label(figure *f, const point *p)
{
    const double x = x_of(f, log2_of(p->passes)), y = y_of(p->share), away = MARK + 10.0;
    const uint8_t *colour = styles[p->style].colour;
    if (strcmp(p->side, "left") == 0)
        draw_text(f, x - away, y, 1.0, colour, p->label);
    else if (strcmp(p->side, "right") == 0)
        draw_text(f, x + away, y, 0.0, colour, p->label);
    else if (strcmp(p->side, "above") == 0)
        draw_text(f, x, y_of(p->high) - away, 0.5, colour, p->label);
    else
        draw_text(f, x, y_of(p->low) + away, 0.5, colour, p->label);
}

/* The point of p's series that has the next more passes; NULL: none. */
static const point *point_after(const figure *f, const point *p)
{
    const point *next = NULL;
    for (size_t i = 0; i < f->n; i++)
        if (f->points[i].style == p->style && f->points[i].passes > p->passes && (!next || f->points[i].passes < next->passes)) next = &f->points[i];
    return next;
}

/* A series is a line through its points by their passes; then bars and marks, so that lines lie below. */
static void draw_points(figure *f)
{
    for (size_t i = f->n; i-- > 0;) {
        const point *a = &f->points[i], *b = point_after(f, a);
        if (b) draw_line(f, x_of(f, log2_of(a->passes)), y_of(a->share), x_of(f, log2_of(b->passes)), y_of(b->share), LINE_WIDTH, styles[a->style].colour);
    }
    for (size_t i = f->n; i-- > 0;) { /* the first series lies on top */
        const point *p = &f->points[i];
        const double x = x_of(f, log2_of(p->passes)), low = y_of(p->low), high = y_of(p->high);
        draw_line(f, x, low, x, high, 2.5, styles[p->style].colour);
        draw_line(f, x - 6, low, x + 6, low, 2.5, styles[p->style].colour);
        draw_line(f, x - 6, high, x + 6, high, 2.5, styles[p->style].colour);
        draw_mark(f, x, y_of(p->share), MARK, &styles[p->style]);
    }
}

/* The names of the series, in the lower right corner: few points are as bad as that in spite of many passes. */
static void draw_legend(figure *f)
{
    size_t widest = 0, seen = 0;
    for (size_t i = 0; i < f->n; i++) {
        const size_t width = tsar_image_text_width(f->points[i].series, strlen(f->points[i].series)) * DOT;
        widest = width > widest ? width : widest;
    }
    for (size_t i = 0; i < f->n; i++) {
        const point *p = &f->points[i];
        if (p->style != seen) continue;
        const double x = RIGHT - 20.0 - (double)widest, y = BOTTOM - 40.0 - 40.0 * (double)(f->n_series - 1 - seen++);
        draw_line(f, x - 70, y, x - 14, y, LINE_WIDTH, styles[p->style].colour);
        draw_mark(f, x - 42, y, MARK, &styles[p->style]);
        draw_text(f, x, y, 0.0, ink, p->series);
    }
}

tsar_status train_figure(const char *path, tsar_error *err)
{
    figure f;
    memset(&f, 0, sizeof f);
    tsar_status status = read_points(&f, err);
    if (status == TSAR_OK && !(f.rgb = tsar_alloc(HIGH, WIDE * 3, "the figure", err))) status = TSAR_ROOM;
    if (status != TSAR_OK) return status;
    memset(f.rgb, 255, (size_t)HIGH * WIDE * 3);
    f.least = f.most = log2_of(f.points[0].passes);
    for (size_t i = 1; i < f.n; i++) {
        const double at = log2_of(f.points[i].passes);
        f.least = at < f.least ? at : f.least;
        f.most = at > f.most ? at : f.most;
    }
    f.least -= 0.35;
    f.most += 0.35;
    draw_axes(&f);
    draw_points(&f);
    for (size_t i = 0; i < f.n; i++) draw_label(&f, &f.points[i]);
    draw_legend(&f);
    status = tsar_image_write(path, f.rgb, HIGH, WIDE, NULL, NULL, 0, err);
    tsar_free(f.rgb);
    return status;
}
