/* Which files a command reads and writes: see paths.h. */
#include "paths.h"

/* A file, and the one that holds its tokenizer. Only a regular file is opened: whoever opens a FIFO takes what is in it. */
static tsar_status read_file(tsar_names *names, const char *path, tsar_error *err)
{
    tsar_file *file = NULL;
    tsar_error why = { "" };
    tsar_status status = tsar_names_read(names, path, err);
    if (status != TSAR_OK || !tsar_path_is_file(path)) return status;
    const tsar_status opened = tsar_file_open(&file, path, &why);
    if (opened == TSAR_ROOM) return tsar_fail(err, opened, "%s", why.text);
    if (opened != TSAR_OK) return TSAR_OK; /* what is no such file is told when it is read */
    if (tsar_file_lender(file)) status = tsar_names_read(names, tsar_file_lender(file), err);
    tsar_file_close(file);
    return status;
}

static tsar_status read_operands(tsar_names *names, const arguments *a, tsar_error *err)
{
    const char **paths = tsar_alloc(a->n, sizeof *paths, "the list of files", err);
    size_t n = 0;
    tsar_status status = paths ? TSAR_OK : TSAR_ROOM;
    for (size_t i = 0; status == TSAR_OK && i < a->n; i++)
        if (!tsar_is_setting(a->operands[i])) paths[n++] = a->operands[i];
    if (status == TSAR_OK && a->command == IMPORT) status = tsar_import_inputs(paths, n, tsar_names_read, names, err);
    for (size_t i = 0; status == TSAR_OK && i < n && a->command != TEXT; i++) status = read_file(names, paths[i], err);
    tsar_free(paths);
    return status;
}

tsar_status tsar_paths_read(tsar_names *names, const arguments *a, const char *model, tsar_error *err)
{
    tsar_status status = model ? read_file(names, model, err) : TSAR_OK;
    for (int i = 0; status == TSAR_OK && i < OPTIONS; i++)
        if (tsar_options[i].kind == IS_READ && a->at[i].text) status = read_file(names, a->at[i].text, err);
    return status == TSAR_OK ? read_operands(names, a, err) : status;
}

tsar_status tsar_paths_check(const arguments *a, const char *model, tsar_error *err)
{
    tsar_names *names = NULL;
    tsar_error reason = { "" };
    const int forced = a->at[O_FORCE].text != NULL, may_force = (tsar_options[O_FORCE].commands & a->command) != 0;
    if (!a->at[O_OUTPUT].text || a->command == GENERATE) return TSAR_OK;
    tsar_status status = forced ? TSAR_OK : tsar_names_open(&names, err);
    if (names) status = tsar_paths_read(names, a, model, err);
    for (int i = 0; status == TSAR_OK && i < OPTIONS; i++) {
        const char *path = tsar_options[i].kind == IS_WRITTEN ? a->at[i].text : NULL;
        if (path && names) status = tsar_names_write(names, path, &reason);
        if (status != TSAR_OK) (void)tsar_fail(err, status, "%s%s", reason.text, may_force ? ", or replace it with --force" : "");
        if (path && status == TSAR_OK) status = tsar_output_check(path, err);
    }
    tsar_names_close(names);
    return status;
}
