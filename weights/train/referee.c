/* The referee: from pixels to objects, from objects to a verdict on a caption. See scenes.h.
 *
 * It knows the world it judges: objects are colourful and backgrounds are not. Pixels of high chroma form connected
 * patches; a patch is the shape whose outline, at the patch's own area and centroid, covers it best; its colour is the
 * palette entry nearest in hue to its mean. None of this needs sharp edges, so it stands the blur of an image tokenizer. */
#include "scenes.h"
#include "shapes.h"

#include <math.h>
#include <string.h>

#define CHROMA 64    /* of 255: half way between the strongest background and the weakest object */
#define SPECK 45     /* pixels: smaller patches are artefacts */
#define OVERLAP 0.70 /* intersection over union that a patch must reach with its shape */
#define SIDE ((size_t)SCENE_SIDE)
#define SCENE_PIXELS (SIDE * SIDE)

typedef struct {
    size_t area, left, right, top, bottom;
    double x, y, rgb[3];
} patch;

static int chroma(const uint8_t *p)
{
    int high = p[0] > p[1] ? p[0] : p[1], low = p[0] < p[1] ? p[0] : p[1];
    return (high > p[2] ? high : p[2]) - (low < p[2] ? low : p[2]);
}

/* Flood fill (four neighbours) of the patch that contains pixel `start`; label marks its pixels. labels, queue [SCENE_PIXELS]. */
static patch gather(const uint8_t *rgb, size_t start, uint16_t label, uint16_t *labels, uint16_t *queue)
{
    patch p = { 0, SIDE, 0, SIDE, 0, 0.0, 0.0, { 0.0, 0.0, 0.0 } };
    size_t head = 0, tail = 0;
    double core = 0.0;
    queue[tail++] = (uint16_t)start;
    labels[start] = label;
    while (head < tail) {
        size_t at = queue[head++], i = at % SIDE, j = at / SIDE;
        p.area++;
        p.x += (double)i + 0.5;
        p.y += (double)j + 0.5;
        p.left = i < p.left ? i : p.left;
        p.right = i > p.right ? i : p.right;
        p.top = j < p.top ? j : p.top;
        p.bottom = j > p.bottom ? j : p.bottom;
        double weight = chroma(rgb + 3 * at);
        weight *= weight; /* the core counts more than the blended rim */
        for (size_t c = 0; c < 3; c++) p.rgb[c] += weight * rgb[3 * at + c];
        core += weight;
        const size_t next[4] = { i > 0 ? at - 1 : at, i + 1 < SIDE ? at + 1 : at, j > 0 ? at - SIDE : at, j + 1 < SIDE ? at + SIDE : at };
        for (int k = 0; k < 4; k++)
            if (!labels[next[k]] && chroma(rgb + 3 * next[k]) > CHROMA) {
                labels[next[k]] = label;
                queue[tail++] = (uint16_t)next[k];
            }
    }
    p.x /= (double)p.area;
    p.y /= (double)p.area;
    for (size_t c = 0; c < 3; c++) p.rgb[c] /= core;
    return p;
}

/* Hue in sixths of the circle: 0 red, 1 yellow, 2 green, 3 cyan, 4 blue, 5 magenta. */
static double hue(const double *rgb)
{
    double r = rgb[0], g = rgb[1], b = rgb[2];
    double high = r > g ? r : g, low = r < g ? r : g;
    high = high > b ? high : b;
    low = low < b ? low : b;
    if (!(high > low)) return 0.0;
    double h = high == r ? (g - b) / (high - low) : high == g ? 2.0 + (b - r) / (high - low) : 4.0 + (r - g) / (high - low);
    return h < 0.0 ? h + 6.0 : h;
}

static int nearest_colour(const double *rgb)
{
    int best = 0;
    double nearest = 9.0;
    for (int c = 0; c < SCENE_COLOURS; c++) {
        double d = fabs(hue(rgb) - hue(shape_palette[c]));
        d = d > 3.0 ? 6.0 - d : d;
        if (d < nearest) {
            nearest = d;
            best = c;
        }
    }
    return best;
}

/* Intersection over union of a patch and a shape of the same area and centroid. */
static double overlap(const patch *p, int shape, uint16_t label, const uint16_t *labels, double *r)
{
    *r = sqrt((double)p->area / shape_area(shape));
    double y0 = p->y - shape_centroid(shape) * *r;
    size_t both = 0;
    for (size_t j = p->top; j <= p->bottom; j++)
        for (size_t i = p->left; i <= p->right; i++)
            both += labels[j * SIDE + i] == label && shape_distance(shape, ((double)i + 0.5 - p->x) / *r, ((double)j + 0.5 - y0) / *r) < 0.0;
    return (double)both / (2.0 * (double)p->area - (double)both);
}

/* The shape -1 marks an object that resembles none. */
static scene_object recognise(const patch *p, uint16_t label, const uint16_t *labels)
{
    scene_object o = { -1, nearest_colour(p->rgb), p->x, p->y, 0.0 };
    double best = OVERLAP;
    for (int shape = 0; shape < SCENE_SHAPES; shape++) {
        double r, score = overlap(p, shape, label, labels, &r);
        if (score > best) {
            best = score;
            o.shape = shape;
            o.r = r;
            o.y = p->y - shape_centroid(shape) * r;
        }
    }
    return o;
}

size_t scene_find(const uint8_t *rgb, scene_object *found)
{
    uint16_t labels[SCENE_PIXELS] = { 0 };
    uint16_t queue[SCENE_PIXELS];
    size_t n = 0;
    size_t areas[SCENE_FOUND];
    uint16_t label = 0;
    for (size_t at = 0; at < SCENE_PIXELS; at++) {
        if (labels[at] || chroma(rgb + 3 * at) <= CHROMA) continue;
        patch p = gather(rgb, at, ++label, labels, queue);
        if (p.area < SPECK || n == SCENE_FOUND) continue;
        size_t k = n++;
        for (; k > 0 && areas[k - 1] < p.area; k--) {
            areas[k] = areas[k - 1];
            found[k] = found[k - 1];
        }
        areas[k] = p.area;
        found[k] = recognise(&p, label, labels);
    }
    return n;
}

/* -------------------------------------------------------------------------------------------------------- verdict */

#define APART 6.0 /* pixels that the centres of two related groups keep at least, along the relation */

/* The relation of objects a to objects b, or the place of object a. */
static int related(int relation, const scene_object *a, const scene_object *b)
{
    const double low = 0.45 * SCENE_SIDE, high = 0.55 * SCENE_SIDE, middle = 0.5 * SCENE_SIDE, slack = 0.13 * SCENE_SIDE;
    switch (relation) {
    case SCENE_LEFT:
        return a->x + APART < b->x;
    case SCENE_RIGHT:
        return b->x + APART < a->x;
    case SCENE_ABOVE:
        return a->y + APART < b->y;
    case SCENE_BELOW:
        return b->y + APART < a->y;
    case SCENE_TOP_LEFT:
        return a->x < low && a->y < low;
    case SCENE_TOP_RIGHT:
        return a->x > high && a->y < low;
    case SCENE_BOTTOM_LEFT:
        return a->x < low && a->y > high;
    case SCENE_BOTTOM_RIGHT:
        return a->x > high && a->y > high;
    case SCENE_CENTRE:
        return fabs(a->x - middle) < slack && fabs(a->y - middle) < slack;
    default:
        return 1;
    }
}

static int fits(const scene_group *g, const scene_object *o)
{
    return o->shape == g->shape && (g->colour < 0 || o->colour == g->colour) && !(g->size == SCENE_SMALL && o->r > 16.0) &&
           !(g->size == SCENE_LARGE && o->r < 14.5);
}

int scene_judge(const scene *s, const scene_object *found, size_t n)
{
    size_t expected = 0;
    for (int i = 0; i < s->n_groups; i++) {
        size_t fitting = 0;
        for (size_t k = 0; k < n; k++) fitting += (size_t)fits(&s->groups[i], &found[k]);
        if (fitting != (size_t)s->groups[i].count) return 0;
        expected += fitting;
    }
    if (expected != n) return 0;
    for (size_t a = 0; a < n; a++)
        for (size_t b = 0; b < n; b++) {
            int pair = s->n_groups == 1 || (fits(&s->groups[0], &found[a]) && fits(&s->groups[1], &found[b]));
            if (pair && !related(s->relation, &found[a], &found[b])) return 0;
        }
    return 1;
}
