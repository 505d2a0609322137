/* A figure as the papers draw it: quality against forward passes. */
#ifndef TRAIN_FIGURE_H
#define TRAIN_FIGURE_H

#include "../../tsar.h"

/* Reads standard input, a line for each point with tabs between: the series, the label at the point (may be empty) and on which side of it the
 * label stands (left, right, above, below), passes, share, its interval's two ends. The first line is the title. Draws to `path`, a PNG or PPM;
 * `name` is what an error calls the input. */
tsar_status train_figure(const char *path, tsar_error *err);

#endif
