/* The six shapes: see shapes.h. Circle and ring are analytic, the others polygons. */
#include "shapes.h"

#include <math.h>

const double shape_palette[SCENE_COLOURS][3] = {
    { 0.90, 0.16, 0.17 }, /* red */
    { 0.99, 0.52, 0.06 }, /* orange */
    { 0.99, 0.85, 0.15 }, /* yellow */
    { 0.20, 0.70, 0.25 }, /* green */
    { 0.13, 0.80, 0.85 }, /* cyan */
    { 0.13, 0.33, 0.90 }, /* blue */
    { 0.52, 0.20, 0.75 }, /* purple */
    { 0.99, 0.45, 0.72 }, /* pink */
};

typedef struct {
    size_t n;
    double extent, round;
    double points[12][2];
} polygon;

/* Corners in order; `round` is the radius of the corners, `extent` the distance of the farthest one plus it. The star has
 * its points at radius 1.2 and its notches at 0.53, at multiples of 36 degrees. */
static const polygon square = { 4, 1.29, 0.1, { { -0.84, -0.84 }, { 0.84, -0.84 }, { 0.84, 0.84 }, { -0.84, 0.84 } } };
static const polygon triangle = { 3, 1.331, 0.08, { { 0.0, -1.1 }, { 1.05, 0.68 }, { -1.05, 0.68 } } };
static const polygon star = { 10,
                              1.26,
                              0.06,
                              { { 0.0, -1.2 },
                                { 0.3115, -0.4288 },
                                { 1.1413, -0.3708 },
                                { 0.5041, 0.1638 },
                                { 0.7053, 0.9708 },
                                { 0.0, 0.53 },
                                { -0.7053, 0.9708 },
                                { -0.5041, 0.1638 },
                                { -1.1413, -0.3708 },
                                { -0.3115, -0.4288 } } };
static const polygon cross = { 12,
                               1.15,
                               0.06,
                               { { -0.32, -1.04 },
                                 { 0.32, -1.04 },
                                 { 0.32, -0.32 },
                                 { 1.04, -0.32 },
                                 { 1.04, 0.32 },
                                 { 0.32, 0.32 },
                                 { 0.32, 1.04 },
                                 { -0.32, 1.04 },
                                 { -0.32, 0.32 },
                                 { -1.04, 0.32 },
                                 { -1.04, -0.32 },
                                 { -0.32, -0.32 } } };

/* Distance to the nearest edge, with the sign by the crossings of a ray to the right (even-odd rule); corners rounded. */
static double polygon_distance(const polygon *p, double x, double y)
{
    double nearest = 1e9;
    int inside = 0;
    for (size_t i = 0, j = p->n - 1; i < p->n; j = i++) {
        double ax = p->points[j][0], ay = p->points[j][1], bx = p->points[i][0] - ax, by = p->points[i][1] - ay;
        double px = x - ax, py = y - ay;
        double t = (px * bx + py * by) / (bx * bx + by * by);
        t = t < 0.0 ? 0.0 : t > 1.0 ? 1.0 : t;
        double dx = px - t * bx, dy = py - t * by, d = dx * dx + dy * dy;
        nearest = d < nearest ? d : nearest;
        if ((py < 0.0) != (py < by) && (px < bx * py / by)) inside = !inside;
    }
    return (inside ? -sqrt(nearest) : sqrt(nearest)) - p->round;
}

static const polygon *polygon_of(int shape)
{
    return shape == SCENE_SQUARE ? &square : shape == SCENE_TRIANGLE ? &triangle : shape == SCENE_STAR ? &star : &cross;
}

double shape_distance(int shape, double x, double y)
{
    switch (shape) {
    case SCENE_CIRCLE:
        return sqrt(x * x + y * y) - 1.0;
    case SCENE_RING:
        return fabs(sqrt(x * x + y * y) - 0.81) - 0.24;
    default:
        return polygon_distance(polygon_of(shape), x, y);
    }
}

#define PI 3.14159265358979323846

/* Polygon: shoelace formula, plus the rounded rim: perimeter x round + pi round^2 (exact where convex). */
double shape_area(int shape)
{
    if (shape == SCENE_CIRCLE) return PI;
    if (shape == SCENE_RING) return PI * (1.05 * 1.05 - 0.57 * 0.57);
    const polygon *p = polygon_of(shape);
    double twice = 0.0, perimeter = 0.0;
    for (size_t i = 0, j = p->n - 1; i < p->n; j = i++) {
        const double *a = p->points[j], *b = p->points[i];
        twice += a[0] * b[1] - a[1] * b[0];
        perimeter += sqrt((a[0] - b[0]) * (a[0] - b[0]) + (a[1] - b[1]) * (a[1] - b[1]));
    }
    return 0.5 * fabs(twice) + perimeter * p->round + PI * p->round * p->round;
}

double shape_centroid(int shape) { return shape == SCENE_TRIANGLE ? (triangle.points[0][1] + 2.0 * triangle.points[1][1]) / 3.0 : 0.0; }

double shape_extent(int shape) { return shape == SCENE_CIRCLE ? 1.0 : shape == SCENE_RING ? 1.05 : polygon_of(shape)->extent; }
