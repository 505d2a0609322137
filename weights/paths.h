/* Which files a command reads and writes, from the table of flags. No part of the library's interface: main.c alone reads it. */
#ifndef TSAR_PATHS_H
#define TSAR_PATHS_H

#include "flags.h"

/* Adds all that the command reads: what its flags and operands name, `model` (NULL: none), the files that these take a tokenizer from, and of an import
 * shards, folders and what lies beside. */
tsar_status tsar_paths_read(tsar_names *names, const arguments *a, const char *model, tsar_error *err);

/* Refuses, before the work, an output that cannot be written, or that is read (unless --force is given). generate looks after its own files by
 * tsar_job_check. */
tsar_status tsar_paths_check(const arguments *a, const char *model, tsar_error *err);

#endif
