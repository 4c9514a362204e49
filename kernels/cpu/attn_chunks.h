/* SPDX-License-Identifier: MIT */
#ifndef ATTN_CHUNKS_H
#define ATTN_CHUNKS_H

/*
 * Attention's way through pages, the same whatever the vectors: chunk after chunk, QUERIES heads of
 * a group at a time, which share each page's loads. Included once, by an attn_ISA.c, below what it
 * calls there: struct work, scale_queries(), quantise_queries(), chunk_scores(), soften() and
 * page_values(). A header and not a function with pointers, so that the form and the number of heads
 * are constants in the innermost loops.
 */

/* While values are worked on, the next chunk's keys are fetched: n_next pages follow these. */
ALWAYS void chunk(uint32_t form, struct work *w, const void *const *pages, uint32_t n_next,
		  float *m, float *l, float *o, const unsigned n_q)
{
	chunk_scores(form, w, pages, n_q);
	soften(w, m, l);
	for (uint32_t i = 0; i < w->n_pages; i++)
		page_values(form, w, i * KV_PAGE, pages[i], pages[i < n_next ? w->n_pages + i : i],
			    o, n_q);
}

ALWAYS void chunk_of(uint32_t form, struct work *w, const void *const *pages, uint32_t n_next,
		     float *m, float *l, float *o)
{
	switch (w->n_q) {
	case 1:
		return chunk(form, w, pages, n_next, m, l, o, 1);
	case 2:
		return chunk(form, w, pages, n_next, m, l, o, 2);
	case 3:
		return chunk(form, w, pages, n_next, m, l, o, 3);
	default:
		return chunk(form, w, pages, n_next, m, l, o, QUERIES);
	}
}

static void attn_chunks(uint32_t form, const void *const *pages, uint32_t head_dim, uint32_t n,
			uint32_t n_q, const float *query, float c, float *m, float *l, float *o)
{
	struct work w;

	assert(head_dim <= HEAD_DIM_MAX);
	w.head_dim = head_dim;
	for (; n; n -= w.n, pages += ATTN_PAGES) {
		w.n = n < ATTN_CHUNK ? n : ATTN_CHUNK;
		w.n_pages = (w.n + KV_PAGE - 1) / KV_PAGE;
		for (uint32_t q = 0; q < n_q;
		     q += w.n_q, o += (size_t)w.n_q * head_dim, m += w.n_q, l += w.n_q) {
			uint32_t n_next = 0;

			w.n_q = n_q - q < QUERIES ? n_q - q : QUERIES;
			if (q + w.n_q == n_q)
				n_next = (n - w.n + KV_PAGE - 1) / KV_PAGE;
			if (form == KV_INT8) {
				quantise_queries(&w, query + (size_t)q * head_dim, c);
				chunk_of(KV_INT8, &w, pages, n_next, m, l, o);
			} else {
				scale_queries(&w, query + (size_t)q * head_dim, c);
				chunk_of(KV_F16, &w, pages, n_next, m, l, o);
			}
		}
	}
}

#endif
