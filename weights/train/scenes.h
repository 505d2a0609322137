/* A small world of captioned pictures, and its referee.
 *
 * A scene is one or two groups of equal objects on a plain or graded background: "three yellow stars above a blue
 * ring". Everything follows from (seed, index) by the counter-based generator of tsar.h, the same bits everywhere: the
 * scene, its caption, its pixels. The referee looks at pixels alone: it finds the objects and judges them against what
 * the caption says, in the six categories of GenEval (arXiv 2310.11513). */
#ifndef SCENES_H
#define SCENES_H

#include "../../tsar.h"

#define SCENE_SIDE 128  /* pixels per row and column */
#define SCENE_OBJECTS 4 /* at most, in a scene */
#define SCENE_FOUND 16  /* at most, that the referee reports */
#define SCENE_CAPTION 128

/* xor this into a seed: a world of captions and scenes apart from the one that training draws from that seed. */
#define SCENE_UNSEEN UINT64_C(0x53434F5245000000)

enum { SCENE_CIRCLE, SCENE_SQUARE, SCENE_TRIANGLE, SCENE_STAR, SCENE_RING, SCENE_CROSS, SCENE_SHAPES };
enum { SCENE_RED, SCENE_ORANGE, SCENE_YELLOW, SCENE_GREEN, SCENE_CYAN, SCENE_BLUE, SCENE_PURPLE, SCENE_PINK, SCENE_COLOURS };
enum { SCENE_SMALL, SCENE_MEDIUM, SCENE_LARGE, SCENE_SIZES };
enum { SCENE_SINGLE, SCENE_TWO, SCENE_COUNTING, SCENE_COLOUR, SCENE_POSITION, SCENE_ATTRIBUTION, SCENE_CATEGORIES };
enum {
    SCENE_ANYWHERE,
    SCENE_LEFT,
    SCENE_RIGHT,
    SCENE_ABOVE,
    SCENE_BELOW, /* of the first group to the second */
    SCENE_TOP_LEFT,
    SCENE_TOP_RIGHT,
    SCENE_BOTTOM_LEFT,
    SCENE_BOTTOM_RIGHT,
    SCENE_CENTRE, /* of the only object */
    SCENE_RELATIONS
};

extern const char *const scene_shape_names[SCENE_SHAPES];
extern const char *const scene_colour_names[SCENE_COLOURS];
extern const char *const scene_category_names[SCENE_CATEGORIES];

/* One object: x, y the centre in pixels (pixel i spans i ... i+1), r the radius that its shape is scaled by. */
typedef struct {
    int shape, colour;
    double x, y, r;
} scene_object;

/* What a caption says of one group: -1 where it is silent. */
typedef struct {
    int count, shape, colour, size;
} scene_group;

typedef struct {
    int category, relation, held_out;
    int n_groups;
    scene_group groups[2];
    int n; /* objects, group after group */
    scene_object objects[SCENE_OBJECTS];
    int grade;         /* direction of the background's grade */
    double tone[2][3]; /* its two ends, RGB in 0 ... 1 */
    char caption[SCENE_CAPTION];
} scene;

/* A stream of random numbers: u in [0, 1), mix(key + G * counter). */
typedef struct {
    uint64_t key, counter;
} scene_stream;
scene_stream scene_stream_open(uint64_t seed, uint64_t index);
double scene_uniform(scene_stream *stream);
size_t scene_below(scene_stream *stream, size_t n); /* an integer in 0 ... n-1 */

/* What training never shows. Of the transformers' world: some colours of a shape in a place ("a purple circle to the left of ...": group 0 of
 * SCENE_LEFT; the group that is on the other side is group 1), and some pairs of shapes in a relation, in any scene whose caption states
 * it ("a ring above a star" is the same as "a star below a ring"). Of the tokenizer's world: those pairs, and a colour of each shape. */
int scene_place_held_out(int shape, int colour, int relation, int group);
int scene_relation_held_out(int shape_a, int relation, int shape_b);
int scene_pair_held_out(int shape, int colour);

/* Draws scene `index` of the world `seed`. category -1: any, as in training. held_out: 0 never shows a held-out combination, 1 always
 * does (SCENE_POSITION and SCENE_ATTRIBUTION). */
void scene_draw(scene *s, uint64_t seed, uint64_t index, int category, int held_out);
/* The same for the tokenizer's training: sizes, places and backgrounds are any. scene_draw has two sizes, twelve backgrounds, and one
 * arrangement of the objects for each caption, in any of several places: what the tokenizer has learnt holds beyond the scenes that
 * are told apart by words; the transformers are spared what no caption tells. */
void scene_draw_wide(scene *s, uint64_t seed, uint64_t index);
/* rgb [SCENE_SIDE][SCENE_SIDE][3] */
void scene_render(const scene *s, uint8_t *rgb);

/* Finds the objects of a picture rgb [SCENE_SIDE][SCENE_SIDE][3], largest first; returns how many (at most SCENE_FOUND). */
size_t scene_find(const uint8_t *rgb, scene_object *found);
/* 1 if the objects are those that the caption names, as many, in the colours and places that it states. */
int scene_judge(const scene *s, const scene_object *found, size_t n);

#endif
