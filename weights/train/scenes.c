/* Scenes: the grammar, the painter. See scenes.h; the referee is in referee.c. */
#include "scenes.h"
#include "shapes.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const char *const scene_shape_names[SCENE_SHAPES] = { "circle", "square", "triangle", "star", "ring", "cross" };
const char *const scene_colour_names[SCENE_COLOURS] = { "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink" };
const char *const scene_category_names[SCENE_CATEGORIES] = { "single object", "two objects", "counting", "colours", "position", "colour attribution" };

static const char *const plurals[SCENE_SHAPES] = { "circles", "squares", "triangles", "stars", "rings", "crosses" };
static const char *const size_names[SCENE_SIZES] = { "small", "medium", "large" };
static const char *const numbers[SCENE_OBJECTS + 1] = { "no", "a", "two", "three", "four" };

/* ------------------------------------------------------------------------------------------------ random numbers */

#define GOLDEN UINT64_C(0x9E3779B97F4A7C15)

scene_stream scene_stream_open(uint64_t seed, uint64_t index)
{
    scene_stream stream = { tsar_mix(tsar_mix(seed + GOLDEN) + GOLDEN * (index + 1)), 0 };
    return stream;
}

double scene_uniform(scene_stream *stream)
{
    stream->counter++;
    return (double)(tsar_mix(stream->key + GOLDEN * stream->counter) >> 11) * 0x1p-53;
}

size_t scene_below(scene_stream *stream, size_t n) { return (size_t)floor(scene_uniform(stream) * (double)n); }

static double between(scene_stream *stream, double low, double high) { return low + (high - low) * scene_uniform(stream); }
static int chance(scene_stream *stream, double p) { return scene_uniform(stream) < p; }

/* ------------------------------------------------------------------------------------------- held-out combinations */

/* One colour of each shape is never seen by the tokenizer: every shape is seen in seven colours, every colour on five or six shapes. */
int scene_pair_held_out(int shape, int colour)
{
    static const int colour_of[SCENE_SHAPES] = { SCENE_PURPLE, SCENE_ORANGE, SCENE_CYAN, SCENE_BLUE, SCENE_PINK, SCENE_GREEN };
    return colour_of[shape] == colour;
}

/* In each place (left, right, above, below, four corners, the middle) one colour of each shape is never seen. Two things that the caption
 * only names together stand side by side. */
int scene_place_held_out(int shape, int colour, int relation, int group)
{
    int place = (relation == SCENE_ANYWHERE ? SCENE_LEFT : relation) - SCENE_LEFT;
    if (group) place ^= 1; /* the other side */
    return colour == (3 * shape + 5 * place + 6) % SCENE_COLOURS;
}

/* Shape b = a + 2 (mod 6) is never to the left of a; b = a + 3 is never above a. */
int scene_relation_held_out(int a, int relation, int b)
{
    int right_of_b = relation == SCENE_RIGHT, below_b = relation == SCENE_BELOW;
    if (relation == SCENE_LEFT || relation == SCENE_ABOVE) {
        int t = a;
        a = b;
        b = t;
        right_of_b = relation == SCENE_LEFT;
        below_b = relation == SCENE_ABOVE;
    }
    return (right_of_b && (a + 2) % SCENE_SHAPES == b) || (below_b && (a + 3) % SCENE_SHAPES == b);
}

/* ---------------------------------------------------------------------------------------------------- the grammar */

/* Whether training never shows `colour` in group i of the scene. A single object of a caption without a place can be any. */
static int colour_held_out(const scene *s, int i, int colour, int wide)
{
    if (wide) return scene_pair_held_out(s->groups[i].shape, colour);
    return (s->n_groups == 2 || s->relation != SCENE_ANYWHERE) && scene_place_held_out(s->groups[i].shape, colour, s->relation, i);
}

static int groups_held_out(const scene *s, int wide)
{
    const scene_group *g = s->groups;
    int out = 0;
    for (int i = 0; i < s->n_groups; i++) out |= g[i].colour >= 0 && colour_held_out(s, i, g[i].colour, wide);
    if (s->n_groups == 2 && s->relation != SCENE_ANYWHERE) out |= scene_relation_held_out(g[0].shape, s->relation, g[1].shape);
    return out;
}

/* How many objects the caption names. */
static int count_objects(const scene *s) { return s->groups[0].count + (s->n_groups == 2 ? s->groups[1].count : 0); }

/* Draws what the caption says. GenEval's categories: an object; two different ones; two to four of one kind; one with
 * its colour; one beside another, or in a place of the picture; two with a colour each. */
static void draw_groups(scene *s, scene_stream *u)
{
    scene_group *g = s->groups;
    s->n_groups = s->category == SCENE_TWO || s->category == SCENE_ATTRIBUTION ? 2 : 1;
    s->relation = SCENE_ANYWHERE;
    if (s->category == SCENE_POSITION) {
        int of_picture = chance(u, 0.25);
        s->n_groups = of_picture ? 1 : 2;
        s->relation = of_picture ? SCENE_TOP_LEFT + (int)scene_below(u, 5) : SCENE_LEFT + (int)scene_below(u, 4);
    }
    int coloured = s->category >= SCENE_COLOUR || (s->category == SCENE_COUNTING && chance(u, 0.6));
    if (s->category == SCENE_POSITION && chance(u, 0.3)) coloured = 0;
    for (int i = 0; i < 2; i++) {
        g[i].count = 1;
        g[i].shape = (int)scene_below(u, SCENE_SHAPES);
        g[i].colour = coloured ? (int)scene_below(u, SCENE_COLOURS) : -1;
        g[i].size = chance(u, 0.15) ? (chance(u, 0.5) ? SCENE_SMALL : SCENE_LARGE) : -1;
    }
    if (s->category == SCENE_COUNTING)
        g[0].count = 2 + (int)scene_below(u, 3);
    else if (s->category == SCENE_POSITION && s->n_groups == 2 && chance(u, 0.25))
        g[scene_below(u, 2)].count = 2 + (int)scene_below(u, 2);
    if (g[0].count + g[1].count > 3 && s->category != SCENE_TWO && s->category != SCENE_ATTRIBUTION)
        for (int i = 0; i < 2; i++) g[i].size = g[i].size == SCENE_LARGE ? -1 : g[i].size;
}

/* "a", "two large red circles", ...: appends the words of one group. */
static void say_group(char *caption, const scene_group *g, int one)
{
    char words[SCENE_CAPTION];
    const char *first = g->size >= 0 ? size_names[g->size] : g->colour >= 0 ? scene_colour_names[g->colour] : scene_shape_names[g->shape];
    const char *article = g->count > 1 ? numbers[g->count] : one ? "one" : strchr("aeiou", first[0]) ? "an" : "a";
    snprintf(words, sizeof words, "%s%s%s%s%s %s", article, g->size >= 0 ? " " : "", g->size >= 0 ? size_names[g->size] : "", g->colour >= 0 ? " " : "",
             g->colour >= 0 ? scene_colour_names[g->colour] : "", g->count > 1 ? plurals[g->shape] : scene_shape_names[g->shape]);
    strcat(caption, words);
}

/* The caption: an opening, the groups and what relates them, perhaps the background. At most 100 characters. */
static void say(scene *s, scene_stream *u, int dark, int graded)
{
    static const char *const openings[4] = { "a picture of ", "a drawing of ", "there is ", "an image with " };
    static const char *const relations[SCENE_RELATIONS][2] = { { " and ", " with " },
                                                               { " to the left of ", " left of " },
                                                               { " to the right of ", " right of " },
                                                               { " above ", " over " },
                                                               { " below ", " under " },
                                                               { " in the top left corner", " at the top left" },
                                                               { " in the top right corner", " at the top right" },
                                                               { " in the bottom left corner", " at the bottom left" },
                                                               { " in the bottom right corner", " at the bottom right" },
                                                               { " in the middle", " in the center" } };
    int opened = chance(u, 0.25), one = chance(u, 0.1);
    size_t opening = scene_below(u, 4), wording = chance(u, 0.3) ? 1 : 0;
    int ground = chance(u, 0.15);
    s->caption[0] = '\0';
    if (opened && !(opening == 2 && s->groups[0].count > 1)) strcat(s->caption, openings[opening]);
    say_group(s->caption, &s->groups[0], one);
    if (s->n_groups == 2 || s->relation != SCENE_ANYWHERE) strcat(s->caption, relations[s->relation][wording]);
    if (s->n_groups == 2) say_group(s->caption, &s->groups[1], 0);
    if (ground) strcat(s->caption, dark ? " on a dark background" : graded ? " on a graded background" : " on a light background");
}

/* ------------------------------------------------------------------------------------------------------- placing */

/* A radius in pixels. Two sizes, the smaller where more than two objects share the picture; in the wide world a range around each of
 * three, the middle one a little smaller in a crowd. */
static double draw_radius(scene_stream *u, int size, int crowd, int wide)
{
    static const double low[SCENE_SIZES] = { 11.0, 15.0, 20.0 }, high[SCENE_SIZES] = { 13.0, 18.0, 24.0 };
    if (!wide) return size == SCENE_SMALL || crowd > 2 ? 13.0 : 17.0;
    if (size < 0) {
        double p = scene_uniform(u);
        size = p < 0.25 ? SCENE_SMALL : p < 0.75 || crowd > 2 ? SCENE_MEDIUM : SCENE_LARGE;
    }
    if (size == SCENE_MEDIUM && crowd > 2) return between(u, 13.0, 16.0);
    return between(u, low[size], high[size]);
}

#define CELLS 6      /* places of an object in a row and in a column */
#define LATTICE 16.0 /* pixels between them; the first is at 24 */

/* How objects stand to each other: cell (column, row) of each. Two groups stand one below the other, or, where the caption does not say
 * so, side by side, which is the same with columns and rows exchanged. What is named first is on the left unless the caption says otherwise.
 * Where three objects stand beside one, the middle one of them is nearest to it. */
static void arrange(const scene *s, int cell[SCENE_OBJECTS][2])
{
    static const int rows[SCENE_OBJECTS + 1][SCENE_OBJECTS][2] = {
        { { 0, 0 } }, { { 2, 0 } }, { { 0, 0 }, { 4, 0 } }, { { 2, 0 }, { 0, 2 }, { 4, 2 } }, { { 0, 0 }, { 3, 0 }, { 0, 3 }, { 3, 3 } }
    };
    int stacked = s->n_groups == 1 || s->relation == SCENE_ABOVE || s->relation == SCENE_BELOW;
    int first_leads = s->relation != SCENE_RIGHT && s->relation != SCENE_BELOW;
    for (int i = 0; i < s->n; i++) {
        int group = i >= s->groups[0].count, count = s->groups[group].count, leads = group == !first_leads;
        const int *at = rows[count][group ? i - s->groups[0].count : i];
        int down = at[1];
        if (s->n_groups == 2 && leads)
            down = count == 3 ? 2 - down : down;
        else if (s->n_groups == 2)
            down += s->n - count == 3 ? 5 : 3;
        cell[i][0] = stacked ? at[0] : down;
        cell[i][1] = stacked ? down : at[0];
    }
}

/* The world of the transformers: the arrangement as a whole is anywhere, or where the caption says. One object alone keeps away from the
 * border unless it is in a corner, and so does a row or a column. */
static void lay_out(scene *s, scene_stream *u)
{
    int cell[SCENE_OBJECTS][2];
    int bottom = s->relation == SCENE_BOTTOM_LEFT || s->relation == SCENE_BOTTOM_RIGHT;
    int right = s->relation == SCENE_TOP_RIGHT || s->relation == SCENE_BOTTOM_RIGHT;
    arrange(s, cell);
    for (int axis = 0; axis < 2; axis++) {
        int first = CELLS, last = 0;
        for (int i = 0; i < s->n; i++) {
            first = cell[i][axis] < first ? cell[i][axis] : first;
            last = cell[i][axis] > last ? cell[i][axis] : last;
        }
        int low = first == last, high = CELLS - 1 - (last - first) - low;
        if (s->relation == SCENE_CENTRE) {
            low = CELLS / 2 - 1;
            high = CELLS / 2;
        } else if (s->relation >= SCENE_TOP_LEFT)
            low = high = (axis ? bottom : right) ? CELLS - 1 : 0;
        int from = low + (int)scene_below(u, (size_t)(high - low) + 1);
        for (int i = 0; i < s->n; i++) {
            double centre = LATTICE * (double)(from + cell[i][axis] - first) + 24.0;
            *(axis ? &s->objects[i].y : &s->objects[i].x) = centre;
        }
    }
}

/* The free border that every object of the wide world keeps around itself. */
#define OBJECT_GAP 2.5

/* The box that a centre is drawn from: the whole picture, or the part that the relation gives to this group. A pair of
 * groups is divided at `cut`, which leaves more room to the larger group. */
static void place_box(const scene *s, int group, double cut, double extent, double box[4])
{
    double low = extent + 1.0, high = (double)SCENE_SIDE - extent - 1.0, side = (double)SCENE_SIDE;
    int first_is_low = s->relation == SCENE_LEFT || s->relation == SCENE_ABOVE;
    int axis = s->relation == SCENE_LEFT || s->relation == SCENE_RIGHT ? 0 : 2;
    box[0] = box[2] = low;
    box[1] = box[3] = high;
    switch (s->relation) {
    case SCENE_LEFT:
    case SCENE_RIGHT:
    case SCENE_ABOVE:
    case SCENE_BELOW:
        if ((group == 0) == first_is_low)
            box[axis + 1] = cut - extent - 1.0;
        else
            box[axis] = cut + extent + 1.0;
        break;
    case SCENE_TOP_LEFT: box[1] = box[3] = low + 9.0; break;
    case SCENE_TOP_RIGHT:
        box[0] = high - 9.0;
        box[3] = low + 9.0;
        break;
    case SCENE_BOTTOM_LEFT:
        box[1] = low + 9.0;
        box[2] = high - 9.0;
        break;
    case SCENE_BOTTOM_RIGHT: box[0] = box[2] = high - 9.0; break;
    case SCENE_CENTRE:
        box[0] = box[2] = 0.5 * side - 7.0;
        box[1] = box[3] = 0.5 * side + 7.0;
        break;
    default: break;
    }
}

/* The wide world: tries to place every object once; 0 if they do not fit. */
static int place(scene *s, scene_stream *u, const int *group_of, double shrink)
{
    double fraction = s->groups[0].count > s->groups[1].count ? 0.56 : s->groups[0].count < s->groups[1].count ? 0.44 : 0.5;
    if (s->relation == SCENE_RIGHT || s->relation == SCENE_BELOW) fraction = 1.0 - fraction;
    double cut = (double)SCENE_SIDE * fraction;
    for (int i = 0; i < s->n; i++) {
        scene_object *o = &s->objects[i];
        double extent = shape_extent(o->shape) * o->r * shrink, box[4];
        place_box(s, group_of[i], cut, extent, box);
        int placed = 0;
        for (int attempt = 0; attempt < 40 && !placed; attempt++) {
            o->x = between(u, box[0], box[1]);
            o->y = between(u, box[2], box[3]);
            placed = box[0] <= box[1] && box[2] <= box[3];
            for (int j = 0; j < i && placed; j++) {
                const scene_object *p = &s->objects[j];
                double dx = o->x - p->x, dy = o->y - p->y, room = extent + shape_extent(p->shape) * p->r + OBJECT_GAP;
                placed = dx * dx + dy * dy >= room * room;
            }
        }
        if (!placed) return 0;
        o->r *= shrink;
    }
    return 1;
}

/* Objects of the groups with their colours (drawn where the caption is silent) and places. */
static void draw_objects(scene *s, scene_stream *u, int held_out, int wide)
{
    int group_of[SCENE_OBJECTS];
    double radius[SCENE_OBJECTS], shrink = 1.0;
    s->n = 0;
    for (int i = 0; i < s->n_groups; i++) {
        scene_group *g = &s->groups[i];
        int colour = g->colour, mixed = wide && chance(u, 0.3);
        double r = draw_radius(u, g->size, count_objects(s), wide);
        for (int k = 0; k < g->count; k++) {
            scene_object *o = &s->objects[s->n];
            while (g->colour < 0 && (k == 0 || mixed)) {
                colour = (int)scene_below(u, SCENE_COLOURS);
                if (held_out || !colour_held_out(s, i, colour, wide)) break;
            }
            o->shape = g->shape;
            o->colour = colour;
            o->r = radius[s->n] = wide ? r * between(u, 0.95, 1.05) : r;
            group_of[s->n++] = i;
        }
    }
    if (!wide) lay_out(s, u);
    while (wide && !place(s, u, group_of, shrink)) {
        shrink = shrink > 0.7 ? shrink * 0.98 : shrink;
        for (int i = 0; i < s->n; i++) s->objects[i].r = radius[i];
    }
}

/* ---------------------------------------------------------------------------------------------------- background */

/* Calm tones: their chroma (largest less smallest channel) stays below 0.16, every object's above 0.5. Six of them, plain or darker
 * towards the bottom; in the wide world eleven, with any grade between two of them. */
static void draw_background(scene *s, scene_stream *u, int *dark, int *graded, int wide)
{
    static const double light[7][3] = { { 0.93, 0.90, 0.83 }, { 0.86, 0.90, 0.94 }, { 0.85, 0.92, 0.88 }, { 0.90, 0.87, 0.94 },
                                        { 0.94, 0.94, 0.93 }, { 0.95, 0.88, 0.86 }, { 0.80, 0.81, 0.82 } };
    static const double deep[4][3] = { { 0.17, 0.19, 0.27 }, { 0.25, 0.24, 0.26 }, { 0.20, 0.26, 0.26 }, { 0.31, 0.28, 0.33 } };
    *dark = chance(u, 0.25);
    *graded = chance(u, 0.6);
    const double *a = *dark ? deep[scene_below(u, wide ? 4 : 2)] : light[scene_below(u, wide ? 7 : 4)];
    const double *b = !wide ? a : *dark ? deep[scene_below(u, 4)] : light[scene_below(u, 7)];
    double fade = wide ? between(u, 0.72, 0.9) : 0.8;
    s->grade = *graded ? 1 + (int)scene_below(u, wide ? 4 : 1) : 0;
    for (int c = 0; c < 3; c++) {
        s->tone[0][c] = a[c];
        s->tone[1][c] = *graded ? b[c] * fade : a[c];
    }
}

static void draw(scene *s, uint64_t seed, uint64_t index, int category, int held_out, int wide)
{
    static const double shares[2][SCENE_CATEGORIES] = { { 0.07, 0.15, 0.17, 0.13, 0.25, 0.23 }, { 0.08, 0.14, 0.22, 0.12, 0.22, 0.22 } };
    const double *share = shares[wide];
    scene_stream stream = scene_stream_open(seed, index), *u = &stream;
    double p = scene_uniform(u);
    memset(s, 0, sizeof *s);
    s->category = category >= 0 ? category : 0;
    for (; category < 0 && s->category < SCENE_CATEGORIES - 1 && p >= share[s->category]; s->category++) p -= share[s->category];
    int dark, graded;
    do {
        draw_groups(s, u);
        const scene_group *g = s->groups;
        int same = s->n_groups == 2 && (g[0].shape == g[1].shape || (g[0].colour >= 0 && g[0].colour == g[1].colour));
        if (!same && groups_held_out(s, wide) == (held_out && s->category >= SCENE_POSITION)) break;
    } while (1);
    s->held_out = groups_held_out(s, wide);
    for (int i = 0; i < 2 && !wide; i++) /* three and more are small */
        if (s->groups[i].size == SCENE_LARGE && count_objects(s) > 2) s->groups[i].size = -1;
    draw_background(s, u, &dark, &graded, wide);
    draw_objects(s, u, held_out, wide);
    say(s, u, dark, graded);
}

void scene_draw(scene *s, uint64_t seed, uint64_t index, int category, int held_out) { draw(s, seed, index, category, held_out, 0); }

void scene_draw_wide(scene *s, uint64_t seed, uint64_t index) { draw(s, seed, index, -1, 0, 1); }

/* ------------------------------------------------------------------------------------------------------- painting */

/* Position along the grade of the background, 0 ... 1: plain, downwards, to the right, diagonal, from the centre. */
static double grade_at(int grade, double x, double y)
{
    double side = (double)SCENE_SIDE, dx = x / side - 0.5, dy = y / side - 0.5;
    switch (grade) {
    case 1: return y / side;
    case 2: return x / side;
    case 3: return 0.5 * (x + y) / side;
    case 4: return 2.0 * (dx * dx + dy * dy);
    default: return 0.0;
    }
}

static double clamp01(double x) { return x < 0.0 ? 0.0 : x > 1.0 ? 1.0 : x; }

/* One object over the pixel at (x, y): its soft shadow, thrown to the lower right, then its body, lit from the upper left.
 * Coverage of a pixel = clamp(1/2 - d), d the signed distance of its centre to the outline: anti-aliasing. */
static void paint(const scene_object *o, double x, double y, double pixel[3])
{
    double d = shape_distance(o->shape, (x - o->x - 2.0) / o->r, (y - o->y - 3.0) / o->r) * o->r;
    double shadow = clamp01((4.0 - d) / 8.0);
    shadow = 0.32 * shadow * shadow * (3.0 - 2.0 * shadow);
    for (int c = 0; c < 3; c++) pixel[c] *= 1.0 - shadow;
    double dx = (x - o->x) / o->r, dy = (y - o->y) / o->r;
    double cover = clamp01(0.5 - shape_distance(o->shape, dx, dy) * o->r);
    double light = 1.0 - 0.11 * (dx + dy), gx = dx + 0.4, gy = dy + 0.45;
    double gloss = 0.22 * clamp01(1.0 - 2.2 * (gx * gx + gy * gy));
    for (int c = 0; c < 3; c++) {
        double lit = clamp01(shape_palette[o->colour][c] * light);
        pixel[c] += cover * (lit + (1.0 - lit) * gloss - pixel[c]);
    }
}

void scene_render(const scene *s, uint8_t *rgb)
{
    for (size_t j = 0; j < SCENE_SIDE; j++)
        for (size_t i = 0; i < SCENE_SIDE; i++) {
            double x = (double)i + 0.5, y = (double)j + 0.5, t = grade_at(s->grade, x, y), pixel[3];
            for (int c = 0; c < 3; c++) pixel[c] = s->tone[0][c] + t * (s->tone[1][c] - s->tone[0][c]);
            for (int k = 0; k < s->n; k++) {
                const scene_object *o = &s->objects[k];
                double reach = shape_extent(o->shape) * o->r + 9.0, dx = x - o->x, dy = y - o->y;
                if (dx * dx + dy * dy < reach * reach) paint(o, x, y, pixel);
            }
            for (int c = 0; c < 3; c++) rgb[(j * SCENE_SIDE + i) * 3 + (size_t)c] = (uint8_t)floor(255.0 * clamp01(pixel[c]) + 0.5);
        }
}
