/* Scenes and the referee: true scenes are accepted, wrong ones refused, blur is stood, held-out pairs never occur. */
#include "../weights/train/scenes.h"
#include "../weights/train/shapes.h"
#include "test.h"

#include <math.h>
#include <string.h>

#define SIDE SCENE_SIDE
static uint8_t picture[SIDE * SIDE * 3];

static int judged(const scene *s)
{
    scene_object found[SCENE_FOUND];
    return scene_judge(s, found, scene_find(picture, found));
}

/* Fresh scenes of every category, held-out ones too: at least 99.5 % are judged right. */
static void test_true_scenes(void)
{
    size_t right = 0, n = 2400;
    for (size_t i = 0; i < n; i++) {
        scene s;
        int held_out = i % 4 == 3, category = held_out ? SCENE_POSITION + (int)(i / 4 % 2) : (int)(i % SCENE_CATEGORIES);
        scene_draw(&s, 11, i, category, held_out);
        scene_render(&s, picture);
        right += (size_t)judged(&s);
        CHECK(s.category == category && s.held_out == held_out, "scene %zu: category %d, held out %d", i, s.category, s.held_out);
        CHECK(strlen(s.caption) < 100, "caption of %zu bytes: %s", strlen(s.caption), s.caption);
    }
    CHECK((double)right >= 0.995 * (double)n, "%zu of %zu true scenes accepted", right, n);
}

/* Draws the picture of `wrong` and holds it against the caption of `s`. */
static int accepted(const scene *s, const scene *wrong)
{
    scene_render(wrong, picture);
    return judged(s);
}

static void mirror(scene *s, int across)
{
    for (int i = 0; i < s->n; i++) *(across ? &s->objects[i].x : &s->objects[i].y) = SIDE - (across ? s->objects[i].x : s->objects[i].y);
}

/* The corner whose nearest object is farthest away. */
static void free_corner(const scene *s, double *x, double *y)
{
    double most = -1.0;
    for (int corner = 0; corner < 4; corner++) {
        double cx = corner % 2 ? SIDE - 14.0 : 14.0, cy = corner / 2 ? SIDE - 14.0 : 14.0, nearest = 1e9;
        for (int k = 0; k < s->n; k++) {
            double dx = s->objects[k].x - cx, dy = s->objects[k].y - cy, d = sqrt(dx * dx + dy * dy) - s->objects[k].r;
            nearest = d < nearest ? d : nearest;
        }
        if (nearest > most) {
            most = nearest;
            *x = cx;
            *y = cy;
        }
    }
}

/* Every way to be wrong, on fresh scenes. */
static void test_wrong_scenes(void)
{
    size_t accepted_wrong = 0, tried = 0;
    for (uint64_t i = 0; i < 600; i++) {
        scene s, w;
        scene_draw(&s, 12, i, (int)(i % SCENE_CATEGORIES), 0);
        w = s; /* one object missing */
        w.n--;
        accepted_wrong += (size_t)accepted(&s, &w);
        w = s; /* one object of another shape */
        w.objects[0].shape = (s.objects[0].shape + 1 + (int)(i % 5)) % SCENE_SHAPES;
        w.objects[0].r *= 0.85;
        accepted_wrong += (size_t)accepted(&s, &w);
        tried += 2;
        if (s.groups[0].colour >= 0) { /* one object of another colour */
            w = s;
            w.objects[0].colour = (s.objects[0].colour + 1 + (int)(i % 7)) % SCENE_COLOURS;
            accepted_wrong += (size_t)accepted(&s, &w);
            tried++;
        }
        if (s.category == SCENE_ATTRIBUTION) { /* colours swapped */
            w = s;
            w.objects[0].colour = s.objects[1].colour;
            w.objects[1].colour = s.objects[0].colour;
            accepted_wrong += (size_t)accepted(&s, &w);
            tried++;
        }
        if (s.relation != SCENE_ANYWHERE && s.relation != SCENE_CENTRE) { /* the relation reversed */
            w = s;
            mirror(&w, s.relation == SCENE_LEFT || s.relation == SCENE_RIGHT || s.relation >= SCENE_TOP_LEFT);
            accepted_wrong += (size_t)accepted(&s, &w);
            tried++;
        }
        if (s.n < SCENE_OBJECTS && s.n_groups == 1 && s.relation == SCENE_ANYWHERE) { /* one object too many, in a free corner */
            w = s;
            scene_object extra = s.objects[0];
            extra.r = 9.0;
            free_corner(&s, &extra.x, &extra.y);
            w.objects[w.n++] = extra;
            accepted_wrong += (size_t)accepted(&s, &w);
            tried++;
        }
    }
    CHECK(accepted_wrong == 0, "%zu of %zu wrong pictures accepted", accepted_wrong, tried);
}

/* A blur of three by three pixels, noise of +-10, and ringing, as a tokenizer leaves them. */
static void damage(uint64_t seed)
{
    static uint8_t before[SIDE * SIDE * 3];
    memcpy(before, picture, sizeof before);
    for (int y = 0; y < SIDE; y++)
        for (int x = 0; x < SIDE; x++)
            for (int c = 0; c < 3; c++) {
                int sum = 0, n = 0;
                for (int j = -1; j <= 1; j++)
                    for (int i = -1; i <= 1; i++)
                        if (y + j >= 0 && y + j < SIDE && x + i >= 0 && x + i < SIDE) {
                            sum += before[((y + j) * SIDE + x + i) * 3 + c];
                            n++;
                        }
                int at = (y * SIDE + x) * 3 + c, noise = (int)(tsar_mix(seed + (uint64_t)at) % 21) - 10, value = sum / n + noise;
                picture[at] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
            }
}

static void test_damaged_scenes(void)
{
    size_t right = 0, n = 600;
    for (uint64_t i = 0; i < n; i++) {
        scene s;
        scene_draw(&s, 13, i, -1, 0);
        scene_render(&s, picture);
        damage(i * 1000003);
        right += (size_t)judged(&s);
    }
    CHECK((double)right >= 0.99 * (double)n, "%zu of %zu blurred scenes accepted", right, n);
}

/* Training scenes: no held-out combination, every colour on every shape, objects apart and inside. */
static void test_training_scenes(void)
{
    size_t categories[SCENE_CATEGORIES] = { 0 }, pairs[SCENE_SHAPES][SCENE_COLOURS] = { { 0 } };
    for (uint64_t i = 0; i < 20000; i++) {
        scene s;
        scene_draw(&s, 1, i, -1, 0);
        categories[s.category]++;
        int bad = s.held_out;
        for (int k = 0; k < s.n; k++) {
            const scene_object *o = &s.objects[k];
            double e = shape_extent(o->shape) * o->r;
            pairs[o->shape][o->colour]++;
            bad |= o->x < e || o->y < e || o->x > SIDE - e || o->y > SIDE - e;
            if (s.n_groups == 2 || s.relation != SCENE_ANYWHERE) bad |= scene_place_held_out(o->shape, o->colour, s.relation, k >= s.groups[0].count);
            for (int j = 0; j < k; j++) {
                const scene_object *p = &s.objects[j];
                bad |= sqrt((o->x - p->x) * (o->x - p->x) + (o->y - p->y) * (o->y - p->y)) < e + shape_extent(p->shape) * p->r;
            }
        }
        if (s.n_groups == 2 && s.relation != SCENE_ANYWHERE) bad |= scene_relation_held_out(s.groups[0].shape, s.relation, s.groups[1].shape);
        CHECK(!bad, "scene %lu: %s", (unsigned long)i, s.caption);
    }
    for (int k = 0; k < SCENE_SHAPES * SCENE_COLOURS; k++) {
        int shape = k / SCENE_COLOURS, colour = k % SCENE_COLOURS;
        CHECK(pairs[shape][colour] > 100, "%zu objects are %s %s", pairs[shape][colour], scene_colour_names[colour], scene_shape_names[shape]);
    }
    for (int c = 0; c < SCENE_CATEGORIES; c++) CHECK(categories[c] > 1000, "%zu scenes of category %d", categories[c], c);
}

/* The tokenizer's world never shows one colour of each shape. */
static void test_wide_scenes(void)
{
    for (uint64_t i = 0; i < 2000; i++) {
        scene s;
        int bad = 0;
        scene_draw_wide(&s, 1, i);
        for (int k = 0; k < s.n; k++) bad |= scene_pair_held_out(s.objects[k].shape, s.objects[k].colour);
        CHECK(!bad, "wide scene %lu: %s", (unsigned long)i, s.caption);
    }
}

/* Said both ways, a relation is held out or not, and so is a colour in a place; each place lacks one colour of a shape. */
static void test_relations(void)
{
    for (int a = 0; a < SCENE_SHAPES; a++)
        for (int b = 0; b < SCENE_SHAPES; b++) {
            CHECK(scene_relation_held_out(a, SCENE_LEFT, b) == scene_relation_held_out(b, SCENE_RIGHT, a), "left %d %d", a, b);
            CHECK(scene_relation_held_out(a, SCENE_ABOVE, b) == scene_relation_held_out(b, SCENE_BELOW, a), "above %d %d", a, b);
        }
    for (int shape = 0; shape < SCENE_SHAPES; shape++)
        for (int relation = SCENE_ANYWHERE; relation < SCENE_RELATIONS; relation++) {
            int held_out = 0;
            for (int c = 0; c < SCENE_COLOURS; c++) held_out += scene_place_held_out(shape, c, relation, 0);
            CHECK(held_out == 1, "%d colours of shape %d in relation %d", held_out, shape, relation);
        }
    for (int shape = 0; shape < SCENE_SHAPES; shape++)
        for (int c = 0; c < SCENE_COLOURS; c++) {
            CHECK(scene_place_held_out(shape, c, SCENE_LEFT, 0) == scene_place_held_out(shape, c, SCENE_RIGHT, 1), "left %d %d", shape, c);
            CHECK(scene_place_held_out(shape, c, SCENE_BELOW, 0) == scene_place_held_out(shape, c, SCENE_ABOVE, 1), "below %d %d", shape, c);
            CHECK(scene_place_held_out(shape, c, SCENE_ANYWHERE, 1) == scene_place_held_out(shape, c, SCENE_LEFT, 1), "beside %d %d", shape, c);
        }
}

/* The area and centroid that the referee relies on, against counting. */
static void test_shapes(void)
{
    for (int shape = 0; shape < SCENE_SHAPES; shape++) {
        double area = 0.0, y_sum = 0.0, farthest = 0.0;
        const int n = 1000;
        for (int j = 0; j < n; j++)
            for (int i = 0; i < n; i++) {
                double x = 3.0 * (i + 0.5) / n - 1.5, y = 3.0 * (j + 0.5) / n - 1.5;
                if (shape_distance(shape, x, y) < 0.0) {
                    area += 9.0 / n / n;
                    y_sum += y * 9.0 / n / n;
                    farthest = sqrt(x * x + y * y) > farthest ? sqrt(x * x + y * y) : farthest;
                }
            }
        CHECK(fabs(area / shape_area(shape) - 1.0) < 0.05, "shape %d: area %g, formula %g", shape, area, shape_area(shape));
        CHECK(fabs(y_sum / area - shape_centroid(shape)) < 0.03, "shape %d: centroid %g, formula %g", shape, y_sum / area, shape_centroid(shape));
        CHECK(farthest <= shape_extent(shape) && farthest > shape_extent(shape) - 0.05, "shape %d reaches %g, not %g", shape, farthest,
              shape_extent(shape));
    }
}

/* Where the caption does not say how two things stand to each other, they are level and named from left to right. */
static void test_arrangements(void)
{
    for (uint64_t i = 0; i < 600; i++) {
        scene s;
        scene_draw(&s, 3, i, i % 2 ? SCENE_TWO : SCENE_ATTRIBUTION, 0);
        CHECK(s.n == 2 && s.objects[0].x < s.objects[1].x && fabs(s.objects[0].y - s.objects[1].y) < 1e-9, "scene %lu: %s", (unsigned long)i, s.caption);
        scene_draw(&s, 3, i, SCENE_COUNTING, 0);
        for (int k = 0; k < s.n; k++)
            CHECK((s.objects[k].r < 15.0) == (s.n > 2 || s.groups[0].size == SCENE_SMALL), "scene %lu: %s", (unsigned long)i, s.caption);
    }
}

/* The same pixels everywhere: digests of 50 pictures of both worlds. */
static void test_digest(void)
{
    const uint64_t expected[2] = { UINT64_C(0x9f5268387b201709), UINT64_C(0x66bbcb9a4158306d) };
    for (int wide = 0; wide < 2; wide++) {
        uint64_t digest = 0;
        for (uint64_t i = 0; i < 50; i++) {
            scene s;
            if (wide)
                scene_draw_wide(&s, 5, i);
            else
                scene_draw(&s, 5, i, -1, 0);
            scene_render(&s, picture);
            for (size_t k = 0; k < sizeof picture; k++) digest = tsar_mix(digest + picture[k] + 1);
            for (const char *c = s.caption; *c; c++) digest = tsar_mix(digest + (uint64_t)(unsigned char)*c);
        }
        CHECK(digest == expected[wide], "digest of the %s world is 0x%016llx", wide ? "wide" : "small", (unsigned long long)digest);
    }
}

int main(void)
{
    test_true_scenes();
    test_wrong_scenes();
    test_damaged_scenes();
    test_training_scenes();
    test_wide_scenes();
    test_relations();
    test_shapes();
    test_arrangements();
    test_digest();
    return test_end();
}
