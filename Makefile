# tsar: see README.md. Targets: all (default), deps, demo, page, trainer, weights, study, conformance, test, test-cpus, bench, fuzz, install, clean, digests.
#
#   make                  tuned for this machine
#   make PORTABLE=1       for any CPU of the architecture
#   make OMP=1            with OpenMP (--threads N)
#   make NO_PNG=1         without stb_image_write.h: pictures are written as PPM
#   CC, CFLAGS, LDFLAGS, PREFIX, DESTDIR are respected; the flags on which the numbers depend are added in every case.

PREFIX ?= /usr/local
DATADIR = $(PREFIX)/share/tsar
CFLAGS ?= -O3
BUILD ?= .build
# 0.1 built a program weights/train, where a folder stands now, and tested in a folder demo, where a program stands now.
$(shell if [ -f $(BUILD)/weights/train ]; then rm $(BUILD)/weights/train; fi; if [ -d $(BUILD)/demo ]; then rm -r $(BUILD)/demo; fi)

# ---- flags ------------------------------------------------------------------------------------------------------------

# $(call accepted,FLAG): FLAG if this compiler takes it.
accepted = $(shell printf 'int main(void){return 0;}' >.flag.$$$$.c; $(CC) -Werror $(1) -c .flag.$$$$.c -o .flag.$$$$.o >/dev/null 2>&1 && echo '$(1)'; rm -f .flag.$$$$.c .flag.$$$$.o .flag.$$$$.su)

NUMBERS := -std=c99 $(call accepted,-ffp-contract=off) $(call accepted,-fno-fast-math)
WARNINGS := -pedantic -Wall -Wextra -Wshadow -Wconversion
ifndef PORTABLE
TUNING := $(call accepted,-march=native) $(call accepted,-mprefer-vector-width=512)
endif
ifdef OMP
OPENMP := -fopenmp
endif
ifdef NO_PNG
PNG := -DTSAR_NO_PNG
else
# Looked for when it is used, so that `make deps all` finds what deps has just installed.
STB = $(shell for dir in $(STB_INCLUDE) /usr/include/stb /usr/local/include/stb /opt/homebrew/include/stb /usr/include /usr/local/include; do \
      if [ -f $$dir/stb_image_write.h ]; then echo $$dir; break; fi; done)
PNG = $(if $(STB),-isystem $(STB))
endif
# The stack that each function needs, in a file beside its object: tests/test_stack.sh reads them.
STACK := $(call accepted,-fstack-usage)
ALL_CFLAGS = $(TUNING) $(CFLAGS) $(NUMBERS) $(WARNINGS) $(OPENMP) $(STACK) -D_FILE_OFFSET_BITS=64

# ---- what is built ----------------------------------------------------------------------------------------------------

LIBRARY := tsar.c vq.c sampler.c $(wildcard weights/*.c weights/files/*.c) tests/trace.c tests/rounded.c tests/judge.c tests/decisions.c tests/verify.c tests/report.c tests/selfcheck.c tests/bench.c
HEADERS := tsar.h tests/verify.h $(wildcard weights/*.h weights/files/*.h weights/train/*.h)
OBJECTS := $(LIBRARY:%.c=$(BUILD)/%.o)
TESTS := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))

all: tsar libtsar.a tsar.1 tsar.pc

$(BUILD)/tsar: $(BUILD)/main.o $(BUILD)/libtsar.a
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lm

$(BUILD)/libtsar.a: $(OBJECTS)
	@rm -f $@
	$(AR) rcs $@ $(OBJECTS)

# The results stand at the top level, whichever build directory they come from.
tsar libtsar.a: %: $(BUILD)/% FORCE
	@cmp -s $< $@ || cp $< $@

$(BUILD)/%.o: %.c $(HEADERS) $(BUILD)/flags
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(EXTRA_$*) -c $< -o $@

$(BUILD)/weights/files/picture.o: EXTRA_weights/files/picture = $(PNG)
$(BUILD)/weights/files/picture.o: | png-header

$(BUILD)/weights/flags.o: EXTRA_weights/flags = $(if $(NO_PNG),$(PNG))
$(BUILD)/main.o: EXTRA_main = -DTSAR_DATADIR='"$(DATADIR)"' $(if $(NO_PNG),$(PNG))
$(BUILD)/main.o tsar.pc: $(BUILD)/prefix

# Everything is built again when the compiler or a flag changes, and what names the prefix when that does.
$(BUILD)/flags: CONTENT = $(CC) $(ALL_CFLAGS) $(PNG)
$(BUILD)/prefix: CONTENT = $(PREFIX)
$(BUILD)/flags $(BUILD)/prefix: FORCE
	@mkdir -p $(@D)
	@echo '$(CONTENT)' | cmp -s - $@ || echo '$(CONTENT)' >$@

png-header:
ifndef NO_PNG
	@test -n '$(STB)' || { echo 'tsar needs stb_image_write.h to write PNG: run "make deps", or give STB_INCLUDE=DIR, or build with NO_PNG=1 (PPM only)' >&2; exit 1; }
endif

tsar.1: tsar
	./tsar --man >$@.tmp && mv $@.tmp $@

tsar.pc: Makefile $(BUILD)/flags
	@printf 'prefix=%s\nName: tsar\nDescription: Token-Shuffle autoregressive image generation, the reference in C99\nVersion: %s\nCflags: -I$${prefix}/include\nLibs: -L$${prefix}/lib -ltsar -lm%s\n' \
	    '$(PREFIX)' "$$(sed -n 's/^#define TSAR_VERSION "\(.*\)"/\1/p' tsar.h)" '$(if $(OPENMP), $(OPENMP))' >$@

ifneq ($(filter deps,$(MAKECMDGOALS)),)
$(BUILD)/flags png-header: | deps
endif
deps:
	@if [ -n '$(STB)' ]; then echo 'stb_image_write.h is there: nothing to install'; \
	elif command -v apt-get >/dev/null 2>&1; then \
	    if [ "$$(id -u)" = 0 ]; then apt-get update -q && apt-get install -y -q libstb-dev; else sudo apt-get update -q && sudo apt-get install -y -q libstb-dev; fi; \
	else echo 'install the single header stb_image_write.h (package stb or libstb-dev of your system), or build with: make NO_PNG=1'; fi

install: all
	mkdir -p $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(DATADIR)
	cp tsar $(DESTDIR)$(PREFIX)/bin/
	cp libtsar.a $(DESTDIR)$(PREFIX)/lib/
	cp tsar.pc $(DESTDIR)$(PREFIX)/lib/pkgconfig/
	cp tsar.h $(DESTDIR)$(PREFIX)/include/
	cp tsar.1 $(DESTDIR)$(PREFIX)/share/man/man1/
	for f in weights/*.safetensors; do if [ -f "$$f" ]; then cp "$$f" $(DESTDIR)$(DATADIR)/; fi; done

# A sheet of pictures by the shipped model; DEMO='--seed 2' makes another one.
demo: tsar $(BUILD)/demo
	$(BUILD)/demo $(DEMO)

# ---- the page in the browser ------------------------------------------------------------------------------------------

# One file that needs no server: $(BUILD)/tsar.html. Needs clang with WebAssembly, its linker, and wasi-libc.
WASM_CC ?= $(firstword $(foreach c,clang clang-14 clang-16 clang-15 clang-19,$(if $(shell command -v $c),$c)) clang)
WASM = $(WASM_CC) --target=wasm32-wasi
PAGE_SOURCES := weights/page/page.c tests/selfcheck.c $(filter-out tests/% weights/import% weights/cluster.c weights/info.c weights/synth.c,$(LIBRARY))
PAGE_OBJECTS := $(PAGE_SOURCES:%.c=$(BUILD)/page/%.o)
PAGE_CALLS := page_start page_room page_draw page_frame page_colours page_code

page: $(BUILD)/tsar.html
	@echo 'open $< in a browser'

$(BUILD)/page/%.o: %.c $(HEADERS)
	@mkdir -p $(@D)
	$(WASM) -O3 -msimd128 -std=c99 -ffp-contract=off $(WARNINGS) -DTSAR_NO_PNG -c $< -o $@

$(BUILD)/page/tsar.wasm: $(PAGE_OBJECTS)
	$(WASM) -mexec-model=reactor $(PAGE_CALLS:%=-Wl,--export=%) -Wl,-z,stack-size=1048576 -Wl,--strip-all -o $@ $^ -lm

$(BUILD)/tsar.html: $(BUILD)/page/tsar.wasm $(wildcard weights/page/*) tsar.c vq.c sampler.c weights/numbers.c $(wildcard weights/*.safetensors)
	sh weights/page/build.sh $< >$@.tmp && mv $@.tmp $@

# ---- training ---------------------------------------------------------------------------------------------------------

# The trainer makes tsar's own models. -fno-trapping-math and -fno-math-errno let compilers vectorise clamps and roots; neither
# changes a bit. Two threads want OMP=1; on a busy machine set OMP_WAIT_POLICY=passive.
SCENES := weights/train/scenes.c weights/train/shapes.c weights/train/referee.c
TRAINER := $(filter-out weights/train/demo.c,$(wildcard weights/train/*.c))
TRAIN_FLAGS := $(call accepted,-fno-trapping-math) $(call accepted,-fno-math-errno)
$(foreach f,$(TRAINER),$(eval EXTRA_$(f:.c=) := $(TRAIN_FLAGS)))

$(BUILD)/weights/train/demo.o: EXTRA_weights/train/demo = $(if $(NO_PNG),$(PNG))
$(BUILD)/demo: $(BUILD)/weights/train/demo.o $(SCENES:%.c=$(BUILD)/%.o) $(BUILD)/libtsar.a
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lm

trainer: $(BUILD)/trainer

# Trains the models from nothing, resumable at any time.
weights: $(BUILD)/trainer
	sh weights/train/make_weights.sh $(BUILD)/trainer

# Scores them in every setting and writes weights/train/STUDY.md, resumable too; 65 minutes with OMP=1 on two cores.
study: tsar $(BUILD)/trainer
	sh weights/train/study.sh $(BUILD)/trainer ./tsar

$(BUILD)/trainer: $(TRAINER:%.c=$(BUILD)/%.o) $(BUILD)/libtsar.a
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lm

# ---- tests ------------------------------------------------------------------------------------------------------------

# The comparison with MPFR is made where the library is installed.
HASH := \#
MPFR := $(shell printf '$(HASH)include <mpfr.h>\nint main(void){return 0;}' >.mpfr.$$$$.c; $(CC) .mpfr.$$$$.c -o .mpfr.$$$$.out -lmpfr -lgmp >/dev/null 2>&1 && echo yes; rm -f .mpfr.$$$$.c .mpfr.$$$$.out)
$(BUILD)/tests/test_math: TEST_FLAGS = $(if $(MPFR),-DHAVE_MPFR)
$(BUILD)/tests/test_math: TEST_LIBS = $(if $(MPFR),-lmpfr -lgmp)

# test_train compiles the trainer's sources a second time, with double.
$(BUILD)/tests/test_train: TEST_FLAGS = $(TRAIN_FLAGS)
$(BUILD)/tests/test_train: $(BUILD)/weights/train/scenes.o $(BUILD)/weights/train/shapes.o
$(BUILD)/tests/test_scenes: $(SCENES:%.c=$(BUILD)/%.o)

$(BUILD)/tests/%: tests/%.c tests/test.h $(BUILD)/libtsar.a
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(TEST_FLAGS) $(LDFLAGS) -o $@ $< $(filter %.o,$^) $(BUILD)/libtsar.a $(TEST_LIBS) -lm

# The conformance suite, for other implementations: a folder of models, cases and their noise (tests/conformance/README.md).
SUITE := $(wildcard tests/conformance/*.c)
$(SUITE:%.c=$(BUILD)/%.o): tests/conformance/suite.h
$(BUILD)/conformance/write: $(SUITE:%.c=$(BUILD)/%.o) $(BUILD)/libtsar.a
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lm

conformance: tsar $(BUILD)/conformance/write
	sh tests/conformance/make.sh $(BUILD)/conformance/suite ./tsar $(BUILD)/conformance/write

test: all $(TESTS) $(BUILD)/tests/bits $(BUILD)/trainer $(BUILD)/demo $(BUILD)/conformance/write
	BUILD=$(BUILD) sh tests/run.sh

# Other compilers and CPUs, under emulation; what is not installed is skipped. CPUS="s390x wasm32" runs these; without root:
# apt-get install --no-install-recommends $(sh tests/cpus.sh --packages) first.
test-cpus:
	BUILD=$(BUILD) CC='$(CC)' sh tests/cpus.sh $(CPUS)

# For tests/test_page.sh.
wasm-cc:
	@echo $(WASM_CC)

# The library's sources, for tests/cpus.sh.
sources:
	@echo $(LIBRARY)

digests: $(BUILD)/tests/bits
	$(BUILD)/tests/bits >tests/digests.txt

bench: tsar
	./tsar bench

fuzz:
	sh tests/fuzz.sh

clean:
	rm -rf $(BUILD) tsar libtsar.a tsar.1 tsar.pc

FORCE:
.PHONY: all deps demo page trainer weights study install conformance test test-cpus sources wasm-cc digests bench fuzz clean png-header FORCE
