/* base64 in bulk: kernels in plain C, SSSE3, AVX2 and AVX-512 VBMI, chosen when the module is
 * imported by what the processor has.
 *
 * Encoding: three octets are spread over four bytes, six bits are shifted into place in each, and
 * a table look-up in a register makes letters of them. Decoding runs the other way, and the
 * look-up tells which bytes lie outside the alphabet. The arithmetic is that of W. Mula and
 * D. Lemire, "Faster Base64 Encoding and Decoding Using AVX2 Instructions" (2018) and "Base64
 * encoding and decoding at almost the speed of a memory copy" (2019).
 *
 * A kernel goes as far as whole blocks reach and hands the rest to the next lesser one; after the
 * plain one less than a group (or a line) is left. They may read and write whole vectors, but
 * never outside the span. */
#ifndef FASTMTA_BASE64_KERNELS_H
#define FASTMTA_BASE64_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* RFC 2045 6.8: lines of at most 76 characters; 57 octets fill one. */
enum { B64_LINE_OCTETS = 57, B64_LINE_CHARS = 76, B64_LINE_SIZE = 78 };
enum { B64_PAD = 64, B64_JUNK = 65 };

#define B64_INLINE static inline __attribute__((always_inline))

typedef struct {
    const uint8_t *src, *src_end;
    uint8_t *dst, *dst_end;
} b64_span;

typedef struct {
    const char *name;
    int (*supported)(void);
    void (*encode)(b64_span *);             /* whole groups of three octets */
    void (*encode_lines)(b64_span *);       /* whole lines of 57 octets, each with its CRLF */
    void (*decode)(b64_span *, int lines);  /* whole groups of four; lines: also over line ends */
} b64_kernel;

static const uint8_t B64_ALPHABET[64] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static uint8_t B64_VALUES[256];

static void b64_fill_values(void) {
    memset(B64_VALUES, B64_JUNK, sizeof B64_VALUES);
    for (int i = 0; i < 64; i++)
        B64_VALUES[B64_ALPHABET[i]] = (uint8_t)i;
    B64_VALUES['='] = B64_PAD;
}

/* ---- plain C ---- */

B64_INLINE void b64_encode_group(const uint8_t *src, uint8_t *dst) {
    uint32_t bits = (uint32_t)src[0] << 16 | (uint32_t)src[1] << 8 | src[2];
    dst[0] = B64_ALPHABET[bits >> 18];
    dst[1] = B64_ALPHABET[bits >> 12 & 63];
    dst[2] = B64_ALPHABET[bits >> 6 & 63];
    dst[3] = B64_ALPHABET[bits & 63];
}

B64_INLINE void b64_crlf(uint8_t *dst) {
    dst[0] = '\r';
    dst[1] = '\n';
}

static int b64_always(void) { return 1; }

static void b64_encode_plain(b64_span *s) {
    for (; s->src_end - s->src >= 3; s->src += 3, s->dst += 4)
        b64_encode_group(s->src, s->dst);
}

static void b64_encode_lines_plain(b64_span *s) {
    for (; s->src_end - s->src >= B64_LINE_OCTETS; s->dst += 2) {
        for (int i = 0; i < B64_LINE_OCTETS; i += 3, s->src += 3, s->dst += 4)
            b64_encode_group(s->src, s->dst);
        b64_crlf(s->dst);
    }
}

/* One to two octets that are left at the end of the data, with their padding (RFC 4648 4). */
static void b64_encode_last(b64_span *s) {
    size_t left = (size_t)(s->src_end - s->src);
    uint8_t group[3] = {0, 0, 0};
    if (!left)
        return;
    memcpy(group, s->src, left);
    b64_encode_group(group, s->dst);
    memset(s->dst + 1 + left, '=', 3 - left);
    s->src += left;
    s->dst += 4;
}

/* CRLF, or LF where something on the way normalised the line ends. */
B64_INLINE size_t b64_line_end(const uint8_t *src) {
    if (src[0] == '\r' && src[1] == '\n')
        return 2;
    return src[0] == '\n';
}

static void b64_decode_plain(b64_span *s, int lines) {
    while (s->src_end - s->src >= 4 && s->dst_end - s->dst >= 3) {
        const uint8_t a = B64_VALUES[s->src[0]], b = B64_VALUES[s->src[1]];
        const uint8_t c = B64_VALUES[s->src[2]], d = B64_VALUES[s->src[3]];
        if ((a | b | c | d) < 64) {
            uint32_t bits = (uint32_t)a << 18 | (uint32_t)b << 12 | (uint32_t)c << 6 | d;
            s->dst[0] = (uint8_t)(bits >> 16);
            s->dst[1] = (uint8_t)(bits >> 8);
            s->dst[2] = (uint8_t)bits;
            s->src += 4;
            s->dst += 3;
            continue;
        }
        size_t skip = lines ? b64_line_end(s->src) : 0;
        if (!skip)
            return;
        s->src += skip;
    }
}

#if defined(__x86_64__)

/* ---- the loop that all vector kernels share ---- */

/* Decodes one block and returns the characters outside the alphabet, one bit each. */
typedef uint64_t (*b64_block)(const uint8_t *src, uint8_t *dst);

/* Decodes 76 characters and says whether all are inside the alphabet, but not the next two. */
typedef int (*b64_line)(const uint8_t *src, uint8_t *dst);

/* Of the last sixteen that were looked at. The two are CRLF, or what is skipped like it. */
B64_INLINE int b64_line_ends(uint64_t outside) { return (outside & 0x3fff) == 0x3000; }

/* Full lines, as nearly all mail has them: what is taken does not depend on what was found, so
 * the processor runs ahead of the look-ups: four times as fast as block by block. */
B64_INLINE void b64_decode_full_lines(b64_span *s, b64_line line) {
    while (s->src_end - s->src >= 80 && s->dst_end - s->dst >= 80 && line(s->src, s->dst)) {
        s->src += B64_LINE_SIZE;
        s->dst += B64_LINE_OCTETS;
    }
}

/* Returns whether the span ran short, and not the alphabet. */
B64_INLINE int b64_decode_blocks(
    b64_span *span, int lines, ptrdiff_t width, b64_block block, b64_line line
) {
    b64_span s = *span;
    int within = 1;
    while (within && s.src_end - s.src >= width + 2 && s.dst_end - s.dst >= width) {
        const uint64_t outside = block(s.src, s.dst);
        const ptrdiff_t groups = (outside ? __builtin_ctzll(outside) : width) / 4;
        s.src += groups * 4;
        s.dst += groups * 3;
        if (!outside)
            continue;
        const size_t skip = lines ? b64_line_end(s.src) : 0;
        within = skip != 0;
        s.src += skip;
        if (skip == 2)
            b64_decode_full_lines(&s, line);
    }
    *span = s;
    return within;
}

/* The last vector of a line reads seven octets and writes two beyond it. */
B64_INLINE int b64_room_for_line(const b64_span *s) {
    return s->src_end - s->src >= 64 && s->dst_end - s->dst >= 80;
}

/* ---- SSSE3 ---- */

#define B64_SSSE3 __attribute__((target("ssse3")))

static int b64_has_ssse3(void) { return __builtin_cpu_supports("ssse3"); }

/* Twelve octets to sixteen letters; reads sixteen octets. */
B64_SSSE3 static inline __m128i b64_letters_ssse3(const uint8_t *src) {
    const __m128i spread = _mm_setr_epi8(1, 0, 2, 1, 4, 3, 5, 4, 7, 6, 8, 7, 10, 9, 11, 10);
    /* What to add to a six-bit value, by range: a-z, 0-9 (ten times), +, /, A-Z. */
    const __m128i offsets = _mm_setr_epi8('a' - 26, '0' - 52, '0' - 52, '0' - 52, '0' - 52,
                                          '0' - 52, '0' - 52, '0' - 52, '0' - 52, '0' - 52,
                                          '0' - 52, '+' - 62, '/' - 63, 'A', 0, 0);
    const __m128i in = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)src), spread);
    const __m128i high = _mm_mulhi_epu16(_mm_and_si128(in, _mm_set1_epi32(0x0fc0fc00)),
                                         _mm_set1_epi32(0x04000040));
    const __m128i low = _mm_mullo_epi16(_mm_and_si128(in, _mm_set1_epi32(0x003f03f0)),
                                        _mm_set1_epi32(0x01000010));
    const __m128i values = _mm_or_si128(high, low);
    const __m128i upper = _mm_cmpgt_epi8(_mm_set1_epi8(26), values);
    const __m128i range = _mm_or_si128(_mm_subs_epu8(values, _mm_set1_epi8(51)),
                                       _mm_and_si128(upper, _mm_set1_epi8(13)));
    return _mm_add_epi8(values, _mm_shuffle_epi8(offsets, range));
}

B64_SSSE3 static inline void b64_encode12(const uint8_t *src, uint8_t *dst) {
    _mm_storeu_si128((__m128i *)dst, b64_letters_ssse3(src));
}

B64_SSSE3 static void b64_encode_ssse3(b64_span *span) {
    b64_span s = *span;
    for (; s.src_end - s.src >= 16; s.src += 12, s.dst += 16)
        b64_encode12(s.src, s.dst);
    *span = s;
    b64_encode_plain(span);
}

B64_SSSE3 static void b64_encode_lines_ssse3(b64_span *span) {
    b64_span s = *span;
    for (; b64_room_for_line(&s); s.src += B64_LINE_OCTETS, s.dst += B64_LINE_SIZE) {
        for (int i = 0; i < 5; i++)
            b64_encode12(s.src + i * 12, s.dst + i * 16);
        b64_crlf(s.dst + B64_LINE_CHARS);
    }
    *span = s;
    b64_encode_lines_plain(span);
}

/* A byte is outside the alphabet where the bits for its two nibbles meet. */
#define B64_LOW_NIBBLE \
    0x15, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x13, 0x1a, 0x1b, 0x1b, 0x1b, 0x1a
#define B64_HIGH_NIBBLE \
    0x10, 0x10, 0x01, 0x02, 0x04, 0x08, 0x04, 0x08, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10
/* What to add to a letter, by its high nibble; one less for '/', which shares it with '+'. */
#define B64_ROLL 0, 16, 19, 4, -65, -65, -71, -71, 0, 0, 0, 0, 0, 0, 0, 0

B64_SSSE3 static inline uint64_t b64_decode16(const uint8_t *src, uint8_t *dst) {
    const __m128i in = _mm_loadu_si128((const __m128i *)src);
    const __m128i nibble = _mm_set1_epi8(0x0f);
    const __m128i high = _mm_and_si128(_mm_srli_epi32(in, 4), nibble);
    const __m128i low = _mm_and_si128(in, nibble);
    const __m128i clash = _mm_and_si128(_mm_shuffle_epi8(_mm_setr_epi8(B64_LOW_NIBBLE), low),
                                        _mm_shuffle_epi8(_mm_setr_epi8(B64_HIGH_NIBBLE), high));
    const __m128i slash = _mm_cmpeq_epi8(in, _mm_set1_epi8('/'));
    const __m128i roll = _mm_shuffle_epi8(_mm_setr_epi8(B64_ROLL), _mm_add_epi8(slash, high));
    const __m128i values = _mm_add_epi8(in, roll);
    const __m128i pairs = _mm_maddubs_epi16(values, _mm_set1_epi32(0x01400140));
    const __m128i groups = _mm_madd_epi16(pairs, _mm_set1_epi32(0x00011000));
    const __m128i pack = _mm_setr_epi8(2, 1, 0, 6, 5, 4, 10, 9, 8, 14, 13, 12, -1, -1, -1, -1);
    _mm_storeu_si128((__m128i *)dst, _mm_shuffle_epi8(groups, pack));
    const __m128i inside = _mm_cmpeq_epi8(clash, _mm_setzero_si128());
    return (uint64_t)_mm_movemask_epi8(inside) ^ 0xffff;
}

B64_SSSE3 static inline int b64_line_ssse3(const uint8_t *src, uint8_t *dst) {
    uint64_t outside = 0;
    for (int i = 0; i < 4; i++)
        outside |= b64_decode16(src + i * 16, dst + i * 12);
    return !outside && b64_line_ends(b64_decode16(src + 64, dst + 48));
}

B64_SSSE3 static void b64_decode_ssse3(b64_span *s, int lines) {
    if (b64_decode_blocks(s, lines, 16, b64_decode16, b64_line_ssse3))
        b64_decode_plain(s, lines);
}

/* ---- AVX2 ---- */

#define B64_AVX2 __attribute__((target("avx2")))

/* With the upper halves of the registers in use SSE code runs six times slower, for the rest of
 * the process; gcc 12 forgets to clear them before a tail call. */
#define B64_LEAVE_WIDE() _mm256_zeroupper()

static int b64_has_avx2(void) { return __builtin_cpu_supports("avx2"); }

B64_AVX2 static inline __m256i b64_twice(__m128i half) { return _mm256_broadcastsi128_si256(half); }

/* 24 octets to 32 letters; reads 28 octets. */
B64_AVX2 static inline void b64_encode24(const uint8_t *src, uint8_t *dst) {
    const __m256i spread = b64_twice(
        _mm_setr_epi8(1, 0, 2, 1, 4, 3, 5, 4, 7, 6, 8, 7, 10, 9, 11, 10));
    const __m256i offsets = b64_twice(_mm_setr_epi8(
        'a' - 26, '0' - 52, '0' - 52, '0' - 52, '0' - 52, '0' - 52, '0' - 52, '0' - 52, '0' - 52,
        '0' - 52, '0' - 52, '+' - 62, '/' - 63, 'A', 0, 0));
    const __m128i first = _mm_loadu_si128((const __m128i *)src);
    const __m128i second = _mm_loadu_si128((const __m128i *)(src + 12));
    const __m256i in = _mm256_shuffle_epi8(_mm256_set_m128i(second, first), spread);
    const __m256i high = _mm256_mulhi_epu16(_mm256_and_si256(in, _mm256_set1_epi32(0x0fc0fc00)),
                                            _mm256_set1_epi32(0x04000040));
    const __m256i low = _mm256_mullo_epi16(_mm256_and_si256(in, _mm256_set1_epi32(0x003f03f0)),
                                           _mm256_set1_epi32(0x01000010));
    const __m256i values = _mm256_or_si256(high, low);
    const __m256i upper = _mm256_cmpgt_epi8(_mm256_set1_epi8(26), values);
    const __m256i range = _mm256_or_si256(_mm256_subs_epu8(values, _mm256_set1_epi8(51)),
                                          _mm256_and_si256(upper, _mm256_set1_epi8(13)));
    const __m256i letters = _mm256_add_epi8(values, _mm256_shuffle_epi8(offsets, range));
    _mm256_storeu_si256((__m256i *)dst, letters);
}

B64_AVX2 static void b64_encode_avx2(b64_span *span) {
    b64_span s = *span;
    for (; s.src_end - s.src >= 28; s.src += 24, s.dst += 32)
        b64_encode24(s.src, s.dst);
    *span = s;
    B64_LEAVE_WIDE();
    b64_encode_ssse3(span);
}

B64_AVX2 static void b64_encode_lines_avx2(b64_span *span) {
    b64_span s = *span;
    for (; b64_room_for_line(&s); s.src += B64_LINE_OCTETS, s.dst += B64_LINE_SIZE) {
        b64_encode24(s.src, s.dst);
        b64_encode24(s.src + 24, s.dst + 32);
        b64_encode12(s.src + 48, s.dst + 64);
        b64_crlf(s.dst + B64_LINE_CHARS);
    }
    *span = s;
    B64_LEAVE_WIDE();
    b64_encode_lines_plain(span);
}

B64_AVX2 static inline uint64_t b64_decode32(const uint8_t *src, uint8_t *dst) {
    const __m256i in = _mm256_loadu_si256((const __m256i *)src);
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi32(in, 4), nibble);
    const __m256i low = _mm256_and_si256(in, nibble);
    const __m256i clash = _mm256_and_si256(
        _mm256_shuffle_epi8(b64_twice(_mm_setr_epi8(B64_LOW_NIBBLE)), low),
        _mm256_shuffle_epi8(b64_twice(_mm_setr_epi8(B64_HIGH_NIBBLE)), high));
    const __m256i slash = _mm256_cmpeq_epi8(in, _mm256_set1_epi8('/'));
    const __m256i roll = _mm256_shuffle_epi8(b64_twice(_mm_setr_epi8(B64_ROLL)),
                                             _mm256_add_epi8(slash, high));
    const __m256i values = _mm256_add_epi8(in, roll);
    const __m256i pairs = _mm256_maddubs_epi16(values, _mm256_set1_epi32(0x01400140));
    const __m256i groups = _mm256_madd_epi16(pairs, _mm256_set1_epi32(0x00011000));
    const __m256i pack = b64_twice(
        _mm_setr_epi8(2, 1, 0, 6, 5, 4, 10, 9, 8, 14, 13, 12, -1, -1, -1, -1));
    const __m256i join = _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 3, 7);
    const __m256i halves = _mm256_shuffle_epi8(groups, pack);
    _mm256_storeu_si256((__m256i *)dst, _mm256_permutevar8x32_epi32(halves, join));
    const __m256i inside = _mm256_cmpeq_epi8(clash, _mm256_setzero_si256());
    return (uint32_t)~_mm256_movemask_epi8(inside);
}

B64_AVX2 static inline int b64_line_avx2(const uint8_t *src, uint8_t *dst) {
    const uint64_t outside = b64_decode32(src, dst) | b64_decode32(src + 32, dst + 24);
    return !outside && b64_line_ends(b64_decode16(src + 64, dst + 48));
}

B64_AVX2 static void b64_decode_avx2(b64_span *s, int lines) {
    const int ran_short = b64_decode_blocks(s, lines, 32, b64_decode32, b64_line_avx2);
    B64_LEAVE_WIDE();
    if (ran_short)
        b64_decode_ssse3(s, lines);
}

/* ---- AVX-512 VBMI ---- */

#define B64_VBMI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi")))

static int b64_has_vbmi(void) {
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi");
}

/* The tables that a register of 64 bytes holds, filled when the module is imported. */
static struct {
    uint8_t spread[64], pack[64], values[128];
} B64_WIDE;

static void b64_fill_wide(void) {
    for (int group = 0; group < 16; group++) {
        const uint8_t spread[4] = {1, 0, 2, 1}, pack[3] = {2, 1, 0};
        for (int i = 0; i < 4; i++)
            B64_WIDE.spread[group * 4 + i] = (uint8_t)(group * 3 + spread[i]);
        for (int i = 0; i < 3; i++)
            B64_WIDE.pack[group * 3 + i] = (uint8_t)(group * 4 + pack[i]);
    }
    for (int i = 0; i < 128; i++)
        B64_WIDE.values[i] = B64_VALUES[i] < 64 ? B64_VALUES[i] : 0x80;
}

/* 48 octets to 64 letters. */
B64_VBMI static inline __m512i b64_letters_vbmi(__m512i in) {
    const __m512i spread = _mm512_loadu_si512(B64_WIDE.spread);
    const __m512i alphabet = _mm512_loadu_si512(B64_ALPHABET);
    /* Where in each 64 bits the six bits of a letter begin; the look-up ignores the two above. */
    const __m512i starts = _mm512_set1_epi64(0x3036242a1016040a);
    const __m512i bits = _mm512_permutexvar_epi8(spread, in);
    return _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(starts, bits), alphabet);
}

B64_VBMI static void b64_encode_vbmi(b64_span *span) {
    b64_span s = *span;
    for (; s.src_end - s.src >= 64; s.src += 48, s.dst += 64)
        _mm512_storeu_si512(s.dst, b64_letters_vbmi(_mm512_loadu_si512(s.src)));
    *span = s;
    B64_LEAVE_WIDE();
    b64_encode_ssse3(span);
}

B64_VBMI static void b64_encode_lines_vbmi(b64_span *span) {
    b64_span s = *span;
    for (; b64_room_for_line(&s); s.src += B64_LINE_OCTETS, s.dst += B64_LINE_SIZE) {
        const __m512i first = _mm512_loadu_si512(s.src);
        const __m128i last = _mm_loadu_si128((const __m128i *)(s.src + 48));
        const __m512i end = b64_letters_vbmi(_mm512_castsi128_si512(last));
        _mm512_storeu_si512(s.dst, b64_letters_vbmi(first));
        _mm_storeu_si128((__m128i *)(s.dst + 64), _mm512_castsi512_si128(end));
        b64_crlf(s.dst + B64_LINE_CHARS);
    }
    *span = s;
    B64_LEAVE_WIDE();
    b64_encode_lines_plain(span);
}

B64_VBMI static inline uint64_t b64_decode64(const uint8_t *src, uint8_t *dst) {
    const __m512i in = _mm512_loadu_si512(src);
    const __m512i lower = _mm512_loadu_si512(B64_WIDE.values);
    const __m512i upper = _mm512_loadu_si512(B64_WIDE.values + 64);
    const __m512i values = _mm512_permutex2var_epi8(lower, in, upper);
    const __m512i pairs = _mm512_maddubs_epi16(values, _mm512_set1_epi32(0x01400140));
    const __m512i groups = _mm512_madd_epi16(pairs, _mm512_set1_epi32(0x00011000));
    const __m512i pack = _mm512_loadu_si512(B64_WIDE.pack);
    _mm512_storeu_si512(dst, _mm512_permutexvar_epi8(pack, groups));
    return _mm512_movepi8_mask(_mm512_or_si512(values, in));
}

B64_VBMI static inline int b64_line_vbmi(const uint8_t *src, uint8_t *dst) {
    const uint64_t outside = b64_decode64(src, dst);
    return !outside && b64_line_ends(b64_decode16(src + 64, dst + 48));
}

B64_VBMI static void b64_decode_vbmi(b64_span *s, int lines) {
    const int ran_short = b64_decode_blocks(s, lines, 64, b64_decode64, b64_line_vbmi);
    B64_LEAVE_WIDE();
    if (ran_short)
        b64_decode_ssse3(s, lines);
}

#endif

static void b64_prepare(void) {
    b64_fill_values();
#if defined(__x86_64__)
    __builtin_cpu_init();
    b64_fill_wide();
#endif
}

/* Best first. */
static const b64_kernel B64_KERNELS[] = {
#if defined(__x86_64__)
    {"vbmi", b64_has_vbmi, b64_encode_vbmi, b64_encode_lines_vbmi, b64_decode_vbmi},
    {"avx2", b64_has_avx2, b64_encode_avx2, b64_encode_lines_avx2, b64_decode_avx2},
    {"ssse3", b64_has_ssse3, b64_encode_ssse3, b64_encode_lines_ssse3, b64_decode_ssse3},
#endif
    {"plain", b64_always, b64_encode_plain, b64_encode_lines_plain, b64_decode_plain},
};
enum { B64_KERNEL_COUNT = sizeof B64_KERNELS / sizeof *B64_KERNELS };

#endif
