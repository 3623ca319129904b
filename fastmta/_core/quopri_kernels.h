/* Quoted-printable in bulk: kernels in plain C and AVX-512 VBMI2, chosen when the module is
 * imported by what the processor has.
 *
 * Text of most languages alternates between escapes and plain octets in runs too short to
 * predict, so neither direction branches on an octet. Encoding stores the form of each octet and
 * goes on by its length; 21 at a time, it writes all as escapes and squeezes out what the
 * plain ones do not need. Decoding looks at 64 positions at once, computes what each would stand
 * for if an escape began there, and squeezes out the rest of the escapes that do. */
#ifndef FASTMTA_QUOPRI_KERNELS_H
#define FASTMTA_QUOPRI_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

typedef struct {
    const uint8_t *src, *end;
    uint8_t *dst, *out;  /* where the next octet goes, and where the first went */
} qp_span;

typedef struct {
    const char *name;
    int (*supported)(void);
    /* Writes the plain or escaped form of each octet, without line breaks; returns how much. May
     * write QP_SLACK octets beyond. */
    size_t (*expand)(const uint8_t *src, size_t size, uint8_t *dst);
    /* Goes as far as there are but plain octets, whole escapes and soft breaks without blanks;
     * stops before any other `=` and before the last blank of a line. May stop sooner. */
    void (*decode)(qp_span *);
} qp_kernel;

enum { QP_SLACK = 80 };

/* The form of each octet and, in the fourth place, its length. */
static uint8_t QP_FORMS[256][4];
/* The value of a hexadecimal digit, of either case; 0x80 for all else. */
static uint8_t QP_DIGITS[256];

static int qp_is_plain(int octet) {
    return octet == '\t' || (octet >= ' ' && octet <= '~' && octet != '=');
}

static void qp_fill_forms(void) {
    const char *digits = "0123456789ABCDEF";
    for (int i = 0; i < 256; i++) {
        const uint8_t plain[4] = {(uint8_t)i, 0, 0, 1};
        const uint8_t escape[4] = {'=', (uint8_t)digits[i >> 4], (uint8_t)digits[i & 15], 3};
        memcpy(QP_FORMS[i], qp_is_plain(i) ? plain : escape, 4);
    }
}

static void qp_fill_digits(void) {
    const char *upper = "0123456789ABCDEF", *lower = "0123456789abcdef";
    memset(QP_DIGITS, 0x80, sizeof QP_DIGITS);
    for (int i = 0; i < 16; i++)
        QP_DIGITS[(uint8_t)upper[i]] = QP_DIGITS[(uint8_t)lower[i]] = (uint8_t)i;
}

/* ---- plain C ---- */

static int qp_always(void) { return 1; }

static size_t qp_expand_plain(const uint8_t *src, size_t size, uint8_t *dst) {
    uint8_t *at = dst;
    for (size_t i = 0; i < size; i++) {
        memcpy(at, QP_FORMS[src[i]], 4);
        at += QP_FORMS[src[i]][3];
    }
    return (size_t)(at - dst);
}

/* In blocks whose count fits one octet: the compiler then adds sixteen of them at a time. */
static size_t qp_count_specials(const uint8_t *src, size_t size) {
    size_t count = 0, at = 0;
    for (; size - at >= 128; at += 128) {
        uint8_t block = 0;
        for (int i = 0; i < 128; i++)
            block += (uint8_t)(src[at + i] - ' ') > '~' - ' ' || src[at + i] == '=';
        count += block;
    }
    for (; at < size; at++)
        count += (uint8_t)(src[at] - ' ') > '~' - ' ' || src[at] == '=';
    return count;
}

#define QP_EACH(octet) (UINT64_C(0x0101010101010101) * (octet))

/* The high bit of each octet that is this one; by a borrow also above such an octet, so that
 * only the lowest bit that is set is sure. */
static inline uint64_t qp_equal(uint64_t word, uint8_t octet) {
    const uint64_t other = word ^ QP_EACH(octet);
    return (other - QP_EACH(1)) & ~other & QP_EACH(0x80);
}

/* Copies up to the next `=` or LF, eight octets at a time. */
static void qp_copy_unmarked(qp_span *span) {
    qp_span s = *span;
    for (; s.end - s.src >= 8; s.src += 8, s.dst += 8) {
        uint64_t word;
        memcpy(&word, s.src, 8);
        memcpy(s.dst, &word, 8);
        const uint64_t found = qp_equal(word, '=') | qp_equal(word, '\n');
        if (!found)
            continue;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        s.src += __builtin_ctzll(found) / 8;
        s.dst += __builtin_ctzll(found) / 8;
#endif
        break;
    }
    for (; s.src < s.end && *s.src != '=' && *s.src != '\n'; s.src++, s.dst++)
        *s.dst = *s.src;
    *span = s;
}

/* A run of escapes. */
static void qp_decode_escapes(qp_span *span) {
    qp_span s = *span;
    for (; s.end - s.src >= 3 && s.src[0] == '='; s.src += 3) {
        const uint8_t high = QP_DIGITS[s.src[1]], low = QP_DIGITS[s.src[2]];
        if ((high | low) & 0x80)
            break;
        *s.dst++ = (uint8_t)(high << 4 | low);
    }
    *span = s;
}

#if defined(__x86_64__)

/* ---- AVX-512 VBMI2 ---- */

#define QP_VBMI2 \
    __attribute__((target( \
        "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi,bmi2,popcnt")))

static int qp_has_vbmi2(void) {
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
           __builtin_cpu_supports("bmi2");
}

/* So many octets are escaped at a time: three times as many fill a register but for one. */
#define QP_BLOCK 21
/* Every third bit: where the form of an octet begins. */
#define QP_FIRST UINT64_C(0x1249249249249249)

static uint8_t QP_TRIPLE[64];

static void qp_fill_triple(void) {
    for (int i = 0; i < 64; i++)
        QP_TRIPLE[i] = (uint8_t)(i / 3);
}

QP_VBMI2 static inline uint32_t qp_specials(__m256i in) {
    const __m256i from_space = _mm256_sub_epi8(in, _mm256_set1_epi8(' '));
    const uint32_t outside = _mm256_cmpgt_epu8_mask(from_space, _mm256_set1_epi8('~' - ' '));
    const uint32_t equals = _mm256_cmpeq_epi8_mask(in, _mm256_set1_epi8('='));
    return (outside & ~_mm256_cmpeq_epi8_mask(in, _mm256_set1_epi8('\t'))) | equals;
}

/* A block; `escaped` has the bits of those octets that are to be escaped. */
QP_VBMI2 static inline void qp_expand_all(__m256i in, uint32_t escaped, uint8_t *dst) {
    const __m512i digits = _mm512_broadcast_i32x4(_mm_setr_epi8(
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'));
    const __m512i triple = _mm512_permutexvar_epi8(_mm512_loadu_si512(QP_TRIPLE),
                                                   _mm512_castsi256_si512(in));
    const __m512i nibbles = _mm512_mask_mov_epi8(triple, QP_FIRST << 1,
                                                 _mm512_srli_epi16(triple, 4));
    const __m512i hex = _mm512_shuffle_epi8(digits,
                                            _mm512_and_si512(nibbles, _mm512_set1_epi8(15)));
    const uint64_t escapes = _pdep_u64(escaped, QP_FIRST);
    const __m512i octets = _mm512_mask_mov_epi8(hex, QP_FIRST, triple);
    const __m512i forms = _mm512_mask_mov_epi8(octets, escapes, _mm512_set1_epi8('='));
    const uint64_t kept = QP_FIRST | escapes << 1 | escapes << 2;
    _mm512_storeu_si512(dst, _mm512_maskz_compress_epi8(kept, forms));
}

/* Of the block the first `count`; returns how much they became. */
QP_VBMI2 static inline size_t qp_expand_block(__m256i in, uint32_t count, uint8_t *dst) {
    const uint32_t escaped = _bzhi_u32(qp_specials(in), count);
    qp_expand_all(in, escaped, dst);
    return count + 2 * (size_t)__builtin_popcount(escaped);
}

QP_VBMI2 static size_t qp_expand_vbmi2(const uint8_t *src, size_t size, uint8_t *dst) {
    uint8_t *at = dst;
    size_t i = 0;
    for (; size - i >= 32; i += QP_BLOCK)
        at += qp_expand_block(_mm256_loadu_si256((const __m256i *)(src + i)), QP_BLOCK, at);
    /* Not octet by octet: that was the dearest part of a line. */
    while (i < size) {
        const uint32_t rest = (uint32_t)(size - i), count = rest < QP_BLOCK ? rest : QP_BLOCK;
        at += qp_expand_block(_mm256_maskz_loadu_epi8(_bzhi_u32(~0u, count), src + i), count, at);
        i += count;
    }
    _mm256_zeroupper();
    return (size_t)(at - dst);
}

QP_VBMI2 static inline __m512i qp_digits64(__m512i in) {
    return _mm512_permutex2var_epi8(_mm512_loadu_si512(QP_DIGITS), in,
                                    _mm512_loadu_si512(QP_DIGITS + 64));
}

QP_VBMI2 static inline uint64_t qp_is(__m512i in, char octet) {
    return _mm512_cmpeq_epi8_mask(in, _mm512_set1_epi8(octet));
}

/* `at`, `next` and `after` are the same octets, shifted by one and two. */
typedef struct {
    uint64_t escapes, soft, odd;
    __m512i values;
} qp_marks;

QP_VBMI2 static inline qp_marks qp_marks64(__m512i at, __m512i next, __m512i after) {
    const __m512i high = qp_digits64(next), low = qp_digits64(after);
    const __m512i wrong = _mm512_ternarylogic_epi64(_mm512_or_si512(high, low), next, after, 0xfe);
    const uint64_t equals = qp_is(at, '='), crlf = qp_is(next, '\r') & qp_is(after, '\n');
    const uint64_t blanks = qp_is(at, ' ') | qp_is(at, '\t');
    qp_marks marks;
    marks.escapes = equals & ~_mm512_movepi8_mask(wrong);
    marks.soft = equals & crlf;
    marks.odd = (equals & ~marks.escapes & ~marks.soft) | (blanks & (qp_is(next, '\n') | crlf));
    const __m512i sixteens = _mm512_slli_epi16(_mm512_and_si512(high, _mm512_set1_epi8(15)), 4);
    marks.values = _mm512_mask_or_epi64(at, 0xff, sixteens, low);
    return marks;
}

QP_VBMI2 static void qp_decode_vbmi2(qp_span *span) {
    qp_span s = *span;
    uint64_t behind = 0;  /* the rest of what began in the block before */
    uint64_t odd = 0;
    while (!odd && s.end - s.src >= 66) {
        const __m512i at = _mm512_loadu_si512(s.src);
        const qp_marks marks = qp_marks64(at, _mm512_loadu_si512(s.src + 1),
                                          _mm512_loadu_si512(s.src + 2));
        const uint64_t triples = marks.escapes | marks.soft;
        const __m512i octets = _mm512_mask_mov_epi8(at, marks.escapes, marks.values);
        uint64_t kept = ~(behind | marks.soft | triples << 1 | triples << 2);
        odd = marks.odd;
        behind = (triples >> 62 & 1) | (triples >> 63) * 3;
        if (odd) {
            kept &= (odd & -odd) - 1;
            behind = 0;
        }
        _mm512_storeu_si512(s.dst, _mm512_maskz_compress_epi8(kept, octets));
        s.dst += __builtin_popcountll(kept);
        s.src += odd ? __builtin_ctzll(odd) : 64;
    }
    s.src += __builtin_popcountll(behind);
    *span = s;
    _mm256_zeroupper();
}

#endif

static void qp_prepare(void) {
    qp_fill_forms();
    qp_fill_digits();
#if defined(__x86_64__)
    __builtin_cpu_init();
    qp_fill_triple();
#endif
}

/* Best first. */
static const qp_kernel QP_KERNELS[] = {
#if defined(__x86_64__)
    {"vbmi2", qp_has_vbmi2, qp_expand_vbmi2, qp_decode_vbmi2},
#endif
    {"plain", qp_always, qp_expand_plain, qp_decode_escapes},
};
enum { QP_KERNEL_COUNT = sizeof QP_KERNELS / sizeof *QP_KERNELS };

#endif
