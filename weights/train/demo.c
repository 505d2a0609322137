/* The demo: a sheet of pictures by the shipped model, each above its caption with the referee's verdict. See `make demo`. */
#include "scenes.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#ifndef __wasi__ /* it has no signals */
#include <signal.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef TSAR_NO_PNG
#define PICTURE_ENDING ".ppm"
#else
#define PICTURE_ENDING ".png"
#endif
#define DEMO_MODEL "weights/tsar-s2.safetensors"
#define MAX_PICTURES 400
#define DEMO_THREADS 64

static const char help[] = "usage: demo [-m MODEL] [-o FILE] [-n PICTURES] [--seed N] [--threads N]\n"
                           "Draws a sheet of pictures that the model makes from captions, with the referee's verdict on each.\n"
                           "  -m MODEL      a text-to-image model of 128 x 128 pixels (" DEMO_MODEL ")\n"
                           "  -o FILE       the sheet, PNG or PPM by its ending (demo" PICTURE_ENDING ")\n"
                           "  -n PICTURES   how many (16)\n"
                           "  --seed N      another sheet (0); picture I, from 0, is tsar generate -p CAPTION --seed N+I\n"
                           "  --threads N   pictures that are made at the same time (all of the machine's threads, if built with OMP=1)\n";

typedef struct {
    const char *model, *output;
    uint64_t seed, n, threads;
} demo_options;

/* One place of the sheet: what was asked for, what came out. */
typedef struct {
    scene s;
    uint8_t rgb[SCENE_SIDE * SCENE_SIDE * 3];
    int right;
    tsar_status status;
    tsar_error err;
} picture;

/* ------------------------------------------------------------------------------------------------------ the arguments */

/* A whole number from `least` to `most`. */
static tsar_status read_count(uint64_t *value, const char *name, const char *text, uint64_t least, uint64_t most, tsar_error *err)
{
    int good = *text != 0;
    *value = 0;
    for (const char *p = text; *p && good; p++) {
        const uint64_t digit = (uint64_t)(*p - '0');
        good = *p >= '0' && *p <= '9' && digit <= most && *value <= (most - digit) / 10;
        if (good) *value = *value * 10 + digit;
    }
    if (good && *value >= least) return TSAR_OK;
    return tsar_fail(err, TSAR_USAGE, "%s %.60s: give a whole number from %" PRIu64 " to %" PRIu64, name, text, least, most);
}

static tsar_status read_arguments(demo_options *o, int argc, char **argv, tsar_error *err)
{
    static const char *const names[] = { "-m", "-o", "-n", "--seed", "--threads" };
    enum { N_NAMES = sizeof names / sizeof names[0] };
    tsar_status status = TSAR_OK;
    for (int i = 1; i < argc && status == TSAR_OK; i += 2) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        int which = 0;
        while (which < N_NAMES && strcmp(name, names[which]) != 0) which++;
        if (which == N_NAMES) return tsar_fail(err, TSAR_USAGE, "%.60s: the demo has no such flag; demo --help lists those it has", name);
        if (!*value) return tsar_fail(err, TSAR_USAGE, "%s: give its value", name);
        if (which == 0) o->model = value;
        if (which == 1) o->output = value;
        if (which == 2) status = read_count(&o->n, name, value, 1, MAX_PICTURES, err);
        if (which == 3) status = read_count(&o->seed, name, value, 0, UINT64_MAX, err);
        if (which == 4) status = read_count(&o->threads, name, value, 1, DEMO_THREADS, err);
    }
    return status == TSAR_OK ? tsar_image_name_check(o->output, err) : status;
}

static uint64_t machine_threads(void)
{
#ifdef _OPENMP
    const int most = omp_get_max_threads();
    return most > DEMO_THREADS ? DEMO_THREADS : most > 1 ? (uint64_t)most : 1;
#else
    return 1;
#endif
}

/* ---------------------------------------------------------------------------------------------------------- the scenes */

/* How often a scene shows what the places before it show already, the mean of its groups times two. Shapes and colours count; a colour
 * that is not named counts as one that was seen twice, and a long caption is worse than all of them. */
static size_t repetition(const scene *s, const size_t *shapes, const size_t *colours)
{
    enum { LONG_CAPTION = 60, UNNAMED_COLOUR = 2 };
    size_t sum = 0;
    for (int i = 0; i < s->n_groups; i++) {
        sum += shapes[s->groups[i].shape];
        sum += s->groups[i].colour >= 0 ? colours[s->groups[i].colour] : UNNAMED_COLOUR;
    }
    return sum * 2 / (size_t)s->n_groups + (strlen(s->caption) > LONG_CAPTION ? 1000 : 0);
}

/* The scenes of the places: all six categories, two of 16 with a combination that training never shows, from a world that training
 * never draws. Of eight candidates for a place the first that repeats least is taken: by its caption, before any picture is made. */
static void choose_scenes(picture *pictures, size_t n, uint64_t seed)
{
    enum { PLACES = 16, CANDIDATES = 8 };
    static const struct {
        int category, held_out;
    } plan[PLACES] = { { SCENE_ATTRIBUTION, 0 }, { SCENE_COUNTING, 0 }, { SCENE_POSITION, 0 },    { SCENE_COLOUR, 0 },
                       { SCENE_COUNTING, 0 },    { SCENE_POSITION, 1 }, { SCENE_TWO, 0 },         { SCENE_ATTRIBUTION, 0 },
                       { SCENE_POSITION, 0 },    { SCENE_COLOUR, 0 },   { SCENE_ATTRIBUTION, 1 }, { SCENE_COUNTING, 0 },
                       { SCENE_SINGLE, 0 },      { SCENE_POSITION, 0 }, { SCENE_COUNTING, 0 },    { SCENE_TWO, 0 } };
    size_t shapes[SCENE_SHAPES] = { 0 }, colours[SCENE_COLOURS] = { 0 };
    for (size_t place = 0; place < n; place++) {
        scene *s = &pictures[place].s, candidate;
        for (size_t k = 0; k < CANDIDATES; k++) {
            scene_draw(&candidate, seed ^ SCENE_UNSEEN, place * CANDIDATES + k, plan[place % PLACES].category, plan[place % PLACES].held_out);
            if (k == 0 || repetition(&candidate, shapes, colours) < repetition(s, shapes, colours)) *s = candidate;
        }
        for (int i = 0; i < s->n_groups; i++) {
            shapes[s->groups[i].shape]++;
            if (s->groups[i].colour >= 0) colours[s->groups[i].colour]++;
        }
    }
}

/* -------------------------------------------------------------------------------------------------------- the pictures */

/* A bar on a terminal; elsewhere a line for every four pictures. */
static void show_progress(size_t before, size_t done, size_t n, double seconds)
{
    enum { PROGRESS = 30 };
    const int bar = tsar_is_terminal(2);
    const double left = done ? seconds / (double)done * (double)(n - done) : 0;
    const int filled = (int)(done * PROGRESS / n);
    if (bar && done == n)
        fputs("\r\033[K", stderr);
    else if (bar && done)
        fprintf(stderr, "\r[%.*s%*s] %zu of %zu pictures, %.0f s left \033[K", filled, "==============================", PROGRESS - filled, "", done, n, left);
    else if (bar)
        fprintf(stderr, "\r[%*s] 0 of %zu pictures", PROGRESS, "", n);
    else if (done / 4 > before / 4 || (done == n && n % 4))
        fprintf(stderr, "%zu of %zu pictures\n", done, n);
    fflush(stderr);
}

/* From a caption to codes to pixels to a verdict. */
static void make_picture(picture *p, const tsar_model *model, uint64_t seed)
{
    tsar_prompt prompt = { 0 };
    tsar_settings settings = tsar_settings_default(model);
    int64_t *ids = NULL, *codes = tsar_alloc(model->config.grid_h, model->config.grid_w * sizeof *codes, "codes", &p->err);
    tsar_result result = { .codes = codes };
    settings.seed = seed;
    p->status = codes ? tsar_text_encode(model, p->s.caption, &ids, &prompt.n_text, &p->err) : TSAR_ROOM;
    prompt.text = ids;
    if (p->status == TSAR_OK) p->status = tsar_generate(model, &prompt, &settings, 1, &result, NULL, NULL, &p->err);
    if (p->status == TSAR_OK) p->status = tsar_vq_decode(model, codes, model->config.grid_h, model->config.grid_w, p->rgb, NULL, &p->err);
    if (p->status == TSAR_OK) {
        scene_object found[SCENE_FOUND];
        p->right = scene_judge(&p->s, found, scene_find(p->rgb, found));
    }
    tsar_free(ids);
    tsar_free(codes);
}

/* All pictures, as many at a time as there are threads. */
static tsar_status make_pictures(picture *pictures, size_t n, const tsar_model *model, const demo_options *o, tsar_error *err)
{
    const double start = tsar_seconds();
    show_progress(0, 0, n, 0);
    for (size_t first = 0, count; first < n; first += count) {
        count = n - first < o->threads ? n - first : (size_t)o->threads;
        TSAR_PARALLEL_FOR(count)
        for (ptrdiff_t i = 0; i < (ptrdiff_t)count; i++) make_picture(&pictures[first + (size_t)i], model, o->seed + first + (uint64_t)i);
        for (size_t i = first; i < first + count; i++)
            if (pictures[i].status != TSAR_OK) {
                *err = pictures[i].err;
                return pictures[i].status;
            }
        show_progress(first, first + count, n, tsar_seconds() - start);
    }
    return TSAR_OK;
}

/* ----------------------------------------------------------------------------------------------------------- the sheet */

/* A green tick or a red cross, seven pixels wide and high. */
static void draw_mark(uint8_t *rgb, size_t W, size_t x, size_t y, int right)
{
    static const char *const marks[2][7] = { { "##   ##", " ## ## ", "  ###  ", "   #   ", "  ###  ", " ## ## ", "##   ##" },
                                             { "      #", "     ##", "#   ## ", "## ##  ", " ###   ", "  #    ", "       " } };
    static const uint8_t colours[2][3] = { { 205, 50, 45 }, { 30, 150, 70 } };
    for (size_t i = 0; i < 49; i++)
        if (marks[right][i / 7][i % 7] == '#') memcpy(rgb + ((y + i / 7) * W + x + i % 7) * 3, colours[right], 3);
}

/* The sheet on light paper: a grid as square as it gets, each picture above its verdict and its caption. */
static tsar_status write_sheet(const picture *pictures, size_t n, const demo_options *o, tsar_error *err)
{
    enum { SHEET_GAP = 14, ABOVE_TEXT = 6, CAPTION_INDENT = 11 };
    static const uint8_t ink[3] = { 45, 45, 52 };
    char seed[32], *captions = tsar_alloc(n, SCENE_CAPTION + 2, "the captions", err), *end = captions;
    size_t columns = 1, lines = 0;
    while (columns * columns < n) columns++;
    for (size_t i = 0; i < n && captions; i++) {
        const size_t high = tsar_image_text(NULL, 0, 0, 0, 0, SCENE_SIDE - CAPTION_INDENT, 1, ink, pictures[i].s.caption);
        lines = high > lines ? high : lines;
        end += sprintf(end, "%s%s", i ? "\n" : "", pictures[i].s.caption);
    }
    const size_t row = SCENE_SIDE + ABOVE_TEXT + TSAR_LINE * lines + SHEET_GAP, column = SCENE_SIDE + SHEET_GAP;
    const size_t W = columns * column + SHEET_GAP, H = (n + columns - 1) / columns * row + SHEET_GAP;
    uint8_t *rgb = captions ? tsar_alloc(H, W * 3, "the sheet", err) : NULL;
    tsar_status status = rgb ? TSAR_OK : TSAR_ROOM;
    if (rgb) memset(rgb, 250, H * W * 3);
    for (size_t i = 0; i < n && rgb; i++) {
        const size_t x = SHEET_GAP + i % columns * column, y = SHEET_GAP + i / columns * row, below = y + SCENE_SIDE + ABOVE_TEXT;
        for (size_t j = 0; j < SCENE_SIDE; j++) memcpy(rgb + ((y + j) * W + x) * 3, pictures[i].rgb + j * SCENE_SIDE * 3, SCENE_SIDE * 3);
        draw_mark(rgb, W, x, below, pictures[i].right);
        (void)tsar_image_text(rgb, H, W, x + CAPTION_INDENT, below, SCENE_SIDE - CAPTION_INDENT, 1, ink, pictures[i].s.caption);
    }
    (void)snprintf(seed, sizeof seed, "%" PRIu64, o->seed);
    const char *const keys[] = { "Software", "Model", "Seed", "Captions" }, *const values[] = { "tsar " TSAR_VERSION, o->model, seed, captions };
    if (status == TSAR_OK) status = tsar_image_write(o->output, rgb, H, W, keys, values, 4, err);
    tsar_free(rgb);
    tsar_free(captions);
    return status;
}

/* ----------------------------------------------------------------------------------------------------------------- main */

/* Before the work: the sheet can be written, and is not the model. */
static tsar_status check_names(const demo_options *o, tsar_error *err)
{
    tsar_names *names = NULL;
    tsar_status status = tsar_names_open(&names, err);
    if (status == TSAR_OK) status = tsar_names_read(names, o->model, err);
    if (status == TSAR_OK) status = tsar_names_write(names, o->output, err);
    tsar_names_close(names);
    return status == TSAR_OK ? tsar_output_check(o->output, err) : status;
}

#ifdef SIGINT
static void on_signal(int number)
{
    tsar_output_clean();
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}
#endif

static tsar_status open_model(tsar_model **model, const char *path, tsar_error *err)
{
    if (!tsar_path_is_readable(path) && strcmp(path, DEMO_MODEL) == 0)
        return tsar_fail(err, TSAR_INPUT, "%s is not there: run the demo in tsar's own folder, name another model with -m MODEL, or train it with make weights",
                         path);
    tsar_status status = tsar_model_open(model, path, TSAR_PART_ALL, 1, err);
    if (status != TSAR_OK) return status;
    const tsar_config *c = &(*model)->config;
    if (c->arch != TSAR_TOKEN_SHUFFLE || !c->has_vq || c->grid_h * c->vq_factor != SCENE_SIDE || c->grid_w * c->vq_factor != SCENE_SIDE)
        return tsar_fail(err, TSAR_INPUT, "%s does not make pictures of %d x %d pixels from text, as the demo needs", path, SCENE_SIDE, SCENE_SIDE);
    return TSAR_OK;
}

static tsar_status run(int argc, char **argv, tsar_error *err)
{
    demo_options o = { DEMO_MODEL, "demo" PICTURE_ENDING, 0, 16, machine_threads() };
    tsar_model *model = NULL;
    size_t right = 0;
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(help, stdout);
        return TSAR_OK;
    }
    const double start = tsar_seconds();
    tsar_status status = read_arguments(&o, argc, argv, err);
    const size_t n = (size_t)o.n;
    if (status == TSAR_OK) status = tsar_self_check(err);
    if (status == TSAR_OK) status = check_names(&o, err);
    if (status == TSAR_OK) status = open_model(&model, o.model, err);
    picture *pictures = status == TSAR_OK ? tsar_alloc(n, sizeof *pictures, "the pictures", err) : NULL;
    if (status == TSAR_OK && !pictures) status = TSAR_ROOM;
    if (status == TSAR_OK) {
        choose_scenes(pictures, n, o.seed);
        status = make_pictures(pictures, n, model, &o, err);
    }
    if (status == TSAR_OK) status = write_sheet(pictures, n, &o, err);
    for (size_t i = 0; i < n && status == TSAR_OK; i++) right += (size_t)pictures[i].right;
    if (status == TSAR_OK) {
        const int shipped = strcmp(o.model, DEMO_MODEL) == 0;
        char sheet[512], name[512];
        (void)tsar_plain_text(name, sizeof name, o.model);
        printf("The sheet is %s: %zu pictures by %s, made in %.1f s.\n", tsar_plain_text(sheet, sizeof sheet, o.output), n, name, tsar_seconds() - start);
        printf("%zu of %zu pictures show what their captions say, says the referee.\n", right, n);
        printf("Make your own: ./tsar generate%s%s%s -p \"three yellow stars above a blue ring\" -o mine" PICTURE_ENDING "\n", shipped ? "" : " -m '",
               shipped ? "" : name, shipped ? "" : "'");
    }
    tsar_free(pictures);
    tsar_model_close(model);
    return status;
}

int main(int argc, char **argv)
{
    tsar_error err = { "" };
    tsar_system_start(&argc, &argv);
#ifdef SIGINT
    signal(SIGINT, on_signal);
    if (signal(SIGTERM, on_signal) == SIG_IGN) signal(SIGTERM, SIG_IGN);
#endif
#ifdef SIGXFSZ
    signal(SIGXFSZ, SIG_IGN); /* a file that grows beyond its limit is an error of writing */
#endif
    tsar_status status = run(argc, argv, &err);
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == TSAR_OK)
        status = tsar_fail(&err, TSAR_ROOM, "standard output cannot be written; is the disk full");
    if (status != TSAR_OK) fprintf(stderr, "demo: %s\n", err.text);
    return (int)status;
}
