/* Lists of prompts: plain and JSON lines, what is refused, shards, names. */
#include "test.h"

#include <stdlib.h>

#define LIST "test_prompts.txt"

static void put(const char *text, size_t size)
{
    FILE *file = fopen(LIST, "wb");
    if (file == NULL) return;
    fwrite(text, 1, size, file);
    fclose(file);
}

/* Lines as "number:text:seed:images", a blank after each. */
static void expect(const char *text, size_t shard, size_t shards, const char *expected)
{
    tsar_prompts *list = NULL;
    tsar_error err = { "" };
    char got[2000] = "";
    size_t used = 0;
    put(text, strlen(text));
    if (CHECK(tsar_prompts_open(&list, LIST, 100, 2, shard, shards, &err) == TSAR_OK, "%s: %s", text, err.text)) {
        for (size_t i = 0; i < tsar_prompts_count(list); i++) {
            const tsar_prompt_line *p = tsar_prompts_at(list, i);
            used += (size_t)snprintf(got + used, sizeof got - used, "%zu:%s:%lu:%zu ", p->number, p->text, (unsigned long)p->seed, p->images);
        }
        CHECK(strcmp(got, expected) == 0, "'%s' gives '%s', expected '%s'", text, got, expected);
    }
    tsar_prompts_close(list);
}

static void refuse(const char *text, size_t size, const char *why)
{
    tsar_prompts *list = NULL;
    tsar_error err = { "" };
    put(text, size);
    const tsar_status status = tsar_prompts_open(&list, LIST, 0, 1, 0, 1, &err);
    CHECK(status == TSAR_INPUT && strstr(err.text, LIST) && strstr(err.text, why), "'%s': %s", text, err.text);
    if (status == TSAR_OK) tsar_prompts_close(list);
}

static void test_lists(void)
{
    expect("a red cube\nblue\n", 0, 1, "0:a red cube:100:2 1:blue:101:2 ");
    expect("one\r\n\r\n  \t\n  two  ", 0, 1, "0:one:100:2 3:  two  :103:2 ");
    expect("\xEF\xBB\xBF" "caf\xC3\xA9\n", 0, 1, "0:caf\xC3\xA9:100:2 ");
    expect("a\nb\nc\nd\ne", 0, 2, "0:a:100:2 2:c:102:2 4:e:104:2 ");
    expect("a\nb\nc\nd\ne", 1, 2, "1:b:101:2 3:d:103:2 ");
    expect("a\nb\nc\nd\ne", 2, 2, "0:a:100:2 2:c:102:2 4:e:104:2 ");
    expect("a", 3, 5, "");
    expect("text {1}\n{2}\n", 0, 1, "0:text {1}:100:2 1:{2}:101:2 ");
    expect("{\"prompt\":\"a \\\"cube\\\"\\u00e9\"}\n\n {\"n\":4, \"seed\": 18446744073709551615, \"prompt\": \"\"}", 0, 1,
           "0:a \"cube\"\xC3\xA9:100:2 2::18446744073709551615:4 ");
    expect("{\"tag\": \"counting\", \"include\": [{\"class\": \"bench\", \"count\": 2}], \"exclude\": null, \"prompt\": \"two benches\"}\n", 0, 1,
           "0:two benches:100:2 ");
}

static void test_refusals(void)
{
    refuse("", sizeof "" - 1, "has no prompts");
    refuse("\n \n", sizeof "\n \n" - 1, "has no prompts");
    refuse("a\0b", sizeof "a\0b" - 1, "zero byte");
    refuse("{\"seed\":1}", sizeof "{\"seed\":1}" - 1, "line 1 has no member \"prompt\"");
    refuse("{\"prompt\":\"a\"}\nplain\n", sizeof "{\"prompt\":\"a\"}\nplain\n" - 1, "line 2");
    refuse("{\"prompt\":\"a\",\"prompt\":\"b\"}", sizeof "{\"prompt\":\"a\",\"prompt\":\"b\"}" - 1, "line 1 has \"prompt\" twice");
    refuse("{\"prompt\":\"a\",\"seed\":1,\"seed\":2}", sizeof "{\"prompt\":\"a\",\"seed\":1,\"seed\":2}" - 1, "\"seed\" twice");
    refuse("{\"prompt\":\"a\",\"n\":0}", sizeof "{\"prompt\":\"a\",\"n\":0}" - 1, "line 1 wants 0 images");
    refuse("{\"prompt\":\"a\",\"n\":1000001}", sizeof "{\"prompt\":\"a\",\"n\":1000001}" - 1, "1000001 images");
    refuse("{\"prompt\":\"a\",\"seed\":-1}", sizeof "{\"prompt\":\"a\",\"seed\":-1}" - 1, "line 1");
    refuse("{\"prompt\":7}", sizeof "{\"prompt\":7}" - 1, "line 1");
    refuse("{\"prompt\":\"a\"} x", sizeof "{\"prompt\":\"a\"} x" - 1, "line 1");
    refuse("{\"prompt\":\"a\"", sizeof "{\"prompt\":\"a\"" - 1, "line 1");
    tsar_prompts *list = NULL;
    tsar_error err = { "" };
    remove(LIST);
    CHECK(tsar_prompts_open(&list, LIST, 0, 1, 0, 1, &err) == TSAR_INPUT && strstr(err.text, LIST), "a missing file: %s", err.text);
}

static void test_shards(void)
{
    static const char *const wrong[] = { "", "1", "/", "1/", "/2", "3/2", "0/0", "-1/2", "1/2/3", "1/2 ", "a/b", "0/99999999999999999999" };
    size_t shard = 7, shards = 7;
    tsar_error err = { "" };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK(tsar_shard_parse(&shard, &shards, wrong[i], &err) == TSAR_USAGE && shard == 7, "--shard '%s'", wrong[i]);
    CHECK(tsar_shard_parse(&shard, &shards, "0/1", &err) == TSAR_OK && shard == 0 && shards == 1, "0/1");
    CHECK(tsar_shard_parse(&shard, &shards, "11/64", &err) == TSAR_OK && shard == 11 && shards == 64, "11/64");
    CHECK(tsar_shard_parse(&shard, &shards, "64/64", &err) == TSAR_OK && shard == 0 && shards == 64, "64/64");
}

static void test_names(void)
{
    static const struct {
        const char *output, *ending, *name;
    } cases[] = { { "out", ".png", "out/00012.png" },  { "out/", ".ppm", "out/00012.ppm" }, { "a.b/c", NULL, "a.b/c-00012" },
                  { "x.png", NULL, "x-00012.png" }, { "d/x.tar.gz", NULL, "d/x.tar-00012.gz" }, { ".", ".png", "./00012.png" } };
    char name[40];
    tsar_error err = { "" };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK(tsar_prompts_name(name, sizeof name, cases[i].output, cases[i].ending, 12, &err) == TSAR_OK && strcmp(name, cases[i].name) == 0, "%s: %s",
              cases[i].output, name);
    CHECK(tsar_prompts_name(name, 10, "out", ".png", 12, &err) == TSAR_USAGE && tsar_prompts_name(name, 10, "long name.png", NULL, 12, &err) == TSAR_USAGE,
          "a name that is too long");
}

int main(void)
{
    test_lists();
    test_refusals();
    test_shards();
    test_names();
    remove(LIST);
    return test_end();
}
