/* What tensors are called: the names of published checkpoints and those of a model file (SPEC 11, QUIRKS-lumina, -emu3, -janus, -t5). */
#include "import.h"

#include <string.h>

/* ------------------------------------------------------------------------------------------------------------- wrappers */

/* What wrappers put around a module, at any depth: torch.compile, FSDP, activation checkpointing, Lightning and DeepSpeed, DistributedDataParallel. */
static const char *const ANYWHERE[] = { "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.", "_fpw_module.", "module.",
                                        NULL };
/* What stands in front of a whole model that is a member of another one. */
static const char *const IN_FRONT[] = {
    "model.", "net.", "network.", "language_model.", "gen_vision_model.", "first_stage_model.", "transformer.", "vq_model.", "vqgan.", "vqvae.", NULL
};

/* The length of the wrapper with which a name begins; 0 if it does not. */
static size_t wrapper(const char *name, const char *const *wrappers)
{
    for (size_t i = 0; wrappers[i]; i++)
        if (strncmp(name, wrappers[i], strlen(wrappers[i])) == 0) return strlen(wrappers[i]);
    return 0;
}

/* A name without its wrappers, in out [room]. */
static void strip(char *out, size_t room, const char *name)
{
    size_t n = 0, skip;
    int component = 1; /* one begins here */
    for (;;) {
        skip = component ? wrapper(name, ANYWHERE) : 0;
        if (skip == 0 && n == 0) skip = wrapper(name, IN_FRONT);
        name += skip;
        if (skip) continue;
        if (!*name || n + 1 == room) break;
        component = *name == '.';
        out[n++] = (unsigned char)*name < 32 ? '?' : *name; /* it may end up on a terminal */
        name++;
    }
    out[n] = '\0';
}

/* ----------------------------------------------------------------------------------------------------------- the rules */

/* Rules in order: # is a number, which goes into the next # of the result, * at the end the rest. TURNED: the first number is counted from the other
 * end. A rule without a result leaves the tensor out. */
enum { TURNED = 256, IN_T5 = 512 };
static const struct {
    const char *from, *to;
    unsigned flags;
} RULES[] = {
    /* the T5 encoder */
    { "shared.weight", "t5.tok_embeddings.weight", 0 },
    { "encoder.embed_tokens.weight", "t5.tok_embeddings.weight", 0 },
    { "encoder.block.#.layer.0.SelfAttention.q.weight", "t5.layers.#.attention.wq.weight", 0 },
    { "encoder.block.#.layer.0.SelfAttention.k.weight", "t5.layers.#.attention.wk.weight", 0 },
    { "encoder.block.#.layer.0.SelfAttention.v.weight", "t5.layers.#.attention.wv.weight", 0 },
    { "encoder.block.#.layer.0.SelfAttention.o.weight", "t5.layers.#.attention.wo.weight", 0 },
    { "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "t5.position_bias.weight", 0 },
    { "encoder.block.#.layer.0.layer_norm.weight", "t5.layers.#.attention_norm.weight", 0 },
    { "encoder.block.#.layer.1.DenseReluDense.wi_0.weight", "t5.layers.#.feed_forward.w1.weight", 0 },
    { "encoder.block.#.layer.1.DenseReluDense.wi_1.weight", "t5.layers.#.feed_forward.w3.weight", 0 },
    { "encoder.block.#.layer.1.DenseReluDense.wo.weight", "t5.layers.#.feed_forward.w2.weight", 0 },
    { "encoder.block.#.layer.1.layer_norm.weight", "t5.layers.#.ffn_norm.weight", 0 },
    { "encoder.block.*", "t5.block.*", 0 },
    { "encoder.final_layer_norm.weight", "t5.norm.weight", 0 },
    { "decoder.block.*", NULL, 0 },
    { "decoder.embed_tokens.weight", NULL, 0 },
    { "decoder.final_layer_norm.weight", NULL, 0 },
    { "lm_head.weight", NULL, IN_T5 },
    /* Hugging Face's names of a Llama */
    { "embed_tokens.weight", "gpt.tok_embeddings.weight", 0 },
    { "lm_head.weight", "gpt.output.weight", 0 },
    { "layers.#.input_layernorm.weight", "gpt.layers.#.attention_norm.weight", 0 },
    { "layers.#.post_attention_layernorm.weight", "gpt.layers.#.ffn_norm.weight", 0 },
    { "layers.#.self_attn.q_proj.weight", "gpt.layers.#.attention.wq.weight", TSAR_NAME_HALVES },
    { "layers.#.self_attn.k_proj.weight", "gpt.layers.#.attention.wk.weight", TSAR_NAME_HALVES },
    { "layers.#.self_attn.v_proj.weight", "gpt.layers.#.attention.wv.weight", 0 },
    { "layers.#.self_attn.o_proj.weight", "gpt.layers.#.attention.wo.weight", 0 },
    { "layers.#.self_attn.q_norm.*", "gpt.layers.#.attention.q_norm.*", TSAR_NAME_HALVES },
    { "layers.#.self_attn.k_norm.*", "gpt.layers.#.attention.k_norm.*", TSAR_NAME_HALVES },
    { "layers.#.self_attn.rotary_emb.*", NULL, 0 },
    { "layers.#.mlp.gate_proj.weight", "gpt.layers.#.feed_forward.w1.weight", 0 },
    { "layers.#.mlp.up_proj.weight", "gpt.layers.#.feed_forward.w3.weight", 0 },
    { "layers.#.mlp.down_proj.weight", "gpt.layers.#.feed_forward.w2.weight", 0 },
    /* Meta's, where they differ from LlamaGen's */
    { "layers.#.attention.q_normalization.*", "gpt.layers.#.attention.q_norm.*", 0 },
    { "layers.#.attention.k_normalization.*", "gpt.layers.#.attention.k_norm.*", 0 },
    { "rope.freqs", NULL, 0 },
    { "rotary_emb.*", NULL, 0 },
    { "vqmodel.*", NULL, 0 }, /* of Chameleon: it has no decoder */
    /* Janus */
    { "gen_embed.weight", "gpt.image_embed.tok_embeddings.weight", 0 },
    { "gen_aligner.layers.0.*", "gpt.image_embed.fc1.*", 0 },
    { "gen_aligner.layers.2.*", "gpt.image_embed.fc2.*", 0 },
    { "gen_head.output_mlp_projector.*", "gpt.image_head.fc1.*", 0 },
    { "gen_head.vision_head.*", "gpt.image_head.fc2.*", 0 },
    { "vision_model.*", NULL, 0 },
    { "aligner.*", NULL, 0 },
    /* taming-transformers', Chameleon's and Emu3's image tokenizers */
    { "encoder.down.#.block.#.*", "vq.encoder.conv_blocks.#.res.#.*", 0 },
    { "encoder.down.#.*", "vq.encoder.conv_blocks.#.*", 0 },
    { "encoder.mid.block_1.*", "vq.encoder.mid.0.*", 0 },
    { "encoder.mid.attn_1.*", "vq.encoder.mid.1.*", 0 },
    { "encoder.mid.block_2.*", "vq.encoder.mid.2.*", 0 },
    { "decoder.up.#.block.#.*", "vq.decoder.conv_blocks.#.res.#.*", TURNED },
    { "decoder.up.#.*", "vq.decoder.conv_blocks.#.*", TURNED },
    { "decoder.mid.block_1.*", "vq.decoder.mid.0.*", 0 },
    { "decoder.mid.attn_1.*", "vq.decoder.mid.1.*", 0 },
    { "decoder.mid.block_2.*", "vq.decoder.mid.2.*", 0 },
    { "loss.*", NULL, 0 },
    /* LlamaGen's */
    { "tok_embeddings.*", "gpt.tok_embeddings.*", 0 },
    { "cls_embedding.*", "gpt.cls_embedding.*", 0 },
    { "layers.*", "gpt.layers.*", 0 },
    { "norm.*", "gpt.norm.*", 0 },
    { "output.*", "gpt.output.*", 0 },
    { "shuffle.*", "gpt.shuffle.*", 0 },
    { "unshuffle.*", "gpt.unshuffle.*", 0 },
    { "freqs_cis*", "gpt.freqs_cis*", 0 },
    { "causal_mask*", "gpt.causal_mask*", 0 },
    { "encoder.*", "vq.encoder.*", 0 },
    { "decoder.*", "vq.decoder.*", 0 },
    { "quantize.*", "vq.quantize.*", 0 },
    { "quant_conv.*", "vq.quant_conv.*", 0 },
    { "post_quant_conv.*", "vq.post_quant_conv.*", 0 },
    /* a model file's own */
    { "gpt.*", "gpt.*", 0 },
    { "vq.*", "vq.*", 0 },
    { "fine.*", "fine.*", 0 },
    { "ctf.*", "ctf.*", 0 },
    { "t5.*", "t5.*", 0 },
    { "tokenizer.*", "tokenizer.*", 0 },
};

enum { MAX_NUMBERS = 2, LARGEST_NUMBER = 1000000 };
typedef struct {
    size_t numbers[MAX_NUMBERS], n;
    const char *rest;
} match;

/* Whether name is pattern; what # and * stand for. */
static int matches(const char *name, const char *pattern, match *found)
{
    found->n = 0;
    found->rest = "";
    for (; *pattern; pattern++) {
        if (*pattern == '*') {
            found->rest = name;
            return 1;
        }
        if (*pattern != '#') {
            if (*name++ != *pattern) return 0;
            continue;
        }
        size_t number = 0;
        if (*name < '0' || *name > '9') return 0;
        for (; *name >= '0' && *name <= '9'; name++)
            if ((number = number * 10 + (size_t)(*name - '0')) > LARGEST_NUMBER) return 0;
        if (found->n < MAX_NUMBERS) found->numbers[found->n++] = number;
    }
    return *name == '\0';
}

int tsar_import_is_called(const char *name, const char *pattern)
{
    match found;
    return matches(name, pattern, &found);
}

/* The result of a rule, in out [room]. */
static void put_result(char *out, size_t room, const char *to, const match *found)
{
    size_t n = 0, number = 0;
    for (; *to && n + 1 < room; to++) {
        if (*to == '#')
            n += (size_t)snprintf(out + n, room - n, "%lu", (unsigned long)found->numbers[number++]);
        else if (*to == '*')
            n += (size_t)snprintf(out + n, room - n, "%s", found->rest);
        else
            out[n++] = *to;
    }
    out[n < room ? n : room - 1] = '\0';
}

/* Emu3's modules nest a convolution and a norm in another of the same name: without those components. */
static void flatten(char *name)
{
    static const char *const nested[] = { ".conv.conv.", ".conv1.conv.", ".conv2.conv.", "quant_conv.conv." };
    char *at;
    while ((at = strstr(name, ".norm_layer."))) memmove(at, at + 11, strlen(at + 11) + 1);
    if (strstr(name, ".time_conv.") && (at = strstr(name, ".conv.conv."))) memmove(at, at + 10, strlen(at + 10) + 1);
    for (size_t i = 1; i < sizeof nested / sizeof *nested; i++)
        if ((at = strstr(name, nested[i]))) {
            at += strlen(nested[i]) - 5;
            memmove(at - 1, at + 4, strlen(at + 4) + 1);
        }
}

void tsar_import_naming(tsar_naming *naming, const char *name)
{
    static const char *const levels[] = { "encoder.down.#.*", "decoder.up.#.*" };
    char bare[64]; /* enough for what is looked at */
    match found;
    strip(bare, sizeof bare, name);
    for (int i = 0; i < 2; i++)
        if (matches(bare, levels[i], &found)) {
            naming->taming = 1;
            if (found.numbers[0] + 1 > naming->levels) naming->levels = found.numbers[0] + 1;
        }
    if (matches(bare, "encoder.block.*", &found) || matches(bare, "decoder.block.*", &found)) naming->t5 = 1;
    if (matches(bare, "gen_embed.*", &found) || matches(bare, "gen_head.*", &found)) naming->gen = 1;
}

unsigned tsar_import_name(char *out, size_t room, const char *name, const tsar_naming *naming)
{
    match found;
    char *bare = out + room / 2; /* the result is longer by a part's name at most, and made from the left */
    strip(bare, room - room / 2, name);
    if (naming->gen && strstr(name, "language_model.lm_head.")) return snprintf(out, room, "%s", name), TSAR_NAME_LEFT;
    for (size_t i = 0; i < sizeof RULES / sizeof *RULES; i++) {
        if (((RULES[i].flags & IN_T5) && !naming->t5) || !matches(bare, RULES[i].from, &found)) continue;
        if (!RULES[i].to) {
            memmove(out, bare, strlen(bare) + 1);
            return TSAR_NAME_LEFT;
        }
        if ((RULES[i].flags & TURNED) && found.numbers[0] < naming->levels) found.numbers[0] = naming->levels - 1 - found.numbers[0];
        put_result(out, room / 2, RULES[i].to, &found);
        if (strncmp(out, "vq.", 3) == 0) flatten(out);
        return TSAR_NAME_KNOWN | (RULES[i].flags & TSAR_NAME_HALVES);
    }
    memmove(out, bare, strlen(bare) + 1);
    return 0;
}
