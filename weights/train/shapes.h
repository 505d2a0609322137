/* The six shapes as signed distances, shared by the painter (scenes.c) and the referee (referee.c). */
#ifndef SHAPES_H
#define SHAPES_H

#include "scenes.h"

/* RGB of each colour, 0 ... 1. */
extern const double shape_palette[SCENE_COLOURS][3];

/* Signed distance from (x, y) to the outline of a shape of radius 1 around the origin, negative inside; y points down. */
double shape_distance(int shape, double x, double y);
/* Radius of the smallest circle around the origin that holds the shape of radius 1. */
double shape_extent(int shape);
/* Area of the shape of radius 1, and how far its centroid lies below the origin. */
double shape_area(int shape);
double shape_centroid(int shape);

#endif
