/* SPDX-License-Identifier: MIT */
#ifndef PRETOK_H
#define PRETOK_H

/*
 * How text is cut into pieces before merging: the regular expressions of Llama 3, GPT-2 and StarCoder
 * written out as scanners. Each piece is found in one pass, or two over white space, so a text takes
 * time in proportion to its length.
 *
 *   LLAMA3     (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
 *              ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 *   GPT2       's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *   STARCODER  each \p{N} alone first; GPT2 on what lies between them, each stretch by itself
 *
 * (in LLAMA3 a space stands before the question mark that begins the second line). \p{L} and \p{N} are
 * utf8proc's categories, \s is Unicode's White_Space; (?i:'s) takes U+017F for an s as well. A byte
 * that is not part of UTF-8 is a character that is none of them, as U+FFFD is, which decoders of the
 * original tokenizers put in its place: it runs together with punctuation.
 */

#include <stddef.h>
#include <stdint.h>

/* Length of the first piece of p[0..len), len >= 1. rule: VOCAB_RULE_*; NONE: all of it. */
size_t pretok_next(uint32_t rule, const uint8_t *p, size_t len);

#endif
