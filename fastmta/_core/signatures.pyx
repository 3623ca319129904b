# cython: boundscheck=False, wraparound=False, cdivision=True
"""RSA and Ed25519 signatures, made without the GIL by the libcrypto that Python's hashlib uses.

That library is there already, and is asked for at run time: neither its headers nor a second copy
are needed. A Python that was built another way may have none to find; then `Unavailable` says so.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

import _hashlib
import os


cdef extern from "dlfcn.h" nogil:
    enum: RTLD_NOW
    void* dlopen(const char* path, int mode)
    void* dlsym(void* library, const char* name)


cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, const void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_trylock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_cond_init(pthread_cond_t*, const void*)
    int pthread_cond_destroy(pthread_cond_t*)
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*)
    int pthread_cond_signal(pthread_cond_t*)
    int pthread_cond_broadcast(pthread_cond_t*)


cdef extern from "unistd.h" nogil:
    int close(int descriptor)


cdef extern from "sys/eventfd.h" nogil:
    enum: EFD_CLOEXEC
    enum: EFD_NONBLOCK
    int eventfd(unsigned int count, int flags)
    int eventfd_read(int descriptor, uint64_t* count)
    int eventfd_write(int descriptor, uint64_t count)


cdef enum:
    DIGEST = 32  # octets of a SHA-256
    LONGEST = 2048  # octets of a signature by the longest RSA key that libcrypto knows
    AT_ONCE = 8  # tasks at most that a thread does before it tells of them


# What is used of libcrypto, in the order of NAMES; the same in 1.1.1 and 3.
cdef struct libcrypto_t:
    void* (*d2i_AutoPrivateKey)(void** key, const unsigned char** der, long length) noexcept nogil
    void (*EVP_PKEY_free)(void* key) noexcept nogil
    void* (*EVP_PKEY_CTX_new)(void* key, void* engine) noexcept nogil
    void (*EVP_PKEY_CTX_free)(void* context) noexcept nogil
    int (*EVP_PKEY_sign_init)(void* context) noexcept nogil
    int (*EVP_PKEY_CTX_ctrl_str)(void* context, const char* name, const char* value) noexcept nogil
    int (*EVP_PKEY_sign)(
        void* context, unsigned char* signature, size_t* length,
        const unsigned char* digest, size_t octets) noexcept nogil
    void* (*EVP_MD_CTX_new)() noexcept nogil
    void (*EVP_MD_CTX_free)(void* context) noexcept nogil
    int (*EVP_DigestSignInit)(
        void* context, void** inner, const void* kind, void* engine, void* key) noexcept nogil
    int (*EVP_DigestSign)(
        void* context, unsigned char* signature, size_t* length,
        const unsigned char* text, size_t octets) noexcept nogil
    void (*ERR_clear_error)() noexcept nogil


NAMES = (
    b"d2i_AutoPrivateKey", b"EVP_PKEY_free", b"EVP_PKEY_CTX_new", b"EVP_PKEY_CTX_free",
    b"EVP_PKEY_sign_init", b"EVP_PKEY_CTX_ctrl_str", b"EVP_PKEY_sign", b"EVP_MD_CTX_new",
    b"EVP_MD_CTX_free", b"EVP_DigestSignInit", b"EVP_DigestSign", b"ERR_clear_error",
)

cdef libcrypto_t crypto
cdef bint found = False


class Unavailable(Exception):
    """There is no libcrypto that Python's hashlib is linked with; the text says what is missing."""


def find_libcrypto(str path):
    """Take the functions from what the shared object at `path` is linked with; or Unavailable.

    An empty path is for the program itself.
    """
    global crypto, found
    cdef void* library = dlopen(os.fsencode(path), RTLD_NOW)
    cdef libcrypto_t functions
    cdef void** function = <void**>&functions
    cdef Py_ssize_t i
    if library == NULL:
        raise Unavailable(f"{path} cannot be opened")
    for i in range(len(NAMES)):
        function[i] = dlsym(library, <bytes>NAMES[i])
        if function[i] == NULL:
            raise Unavailable(f"{path or 'Python'} is not linked with {NAMES[i].decode()}")
    crypto, found = functions, True


@cython.final
cdef class PrivateKey:
    """A key that signs what has a given SHA-256: RSA by PKCS #1 1.5 (RFC 8017), or Ed25519."""

    cdef void* key
    cdef bint rsa

    def __cinit__(self, bytes der not None, *, bint rsa):
        """`der` is PKCS #8 without a password. Unavailable, or ValueError if it is no such key."""
        cdef const unsigned char* at = <const unsigned char*>PyBytes_AS_STRING(der)
        if not found:
            find_libcrypto(getattr(_hashlib, "__file__", ""))
        self.rsa = rsa
        self.key = crypto.d2i_AutoPrivateKey(NULL, &at, len(der))
        if self.key == NULL:
            crypto.ERR_clear_error()
            raise ValueError("libcrypto cannot read the key")

    def __dealloc__(self):
        if self.key != NULL:
            crypto.EVP_PKEY_free(self.key)

    def __call__(self, bytes digest not None):
        """The signature, here and now; ValueError if it cannot be made."""
        cdef part_t part
        cdef signer_t signer
        fill(&part, self, digest)
        begin(&signer)
        sign(&signer, &part)
        end(&signer)
        return signature_of(&part)


# One signature that is wanted.
cdef struct part_t:
    void* key  # borrowed
    bint rsa
    unsigned char[DIGEST] digest
    unsigned char[LONGEST] signature
    size_t length  # of the signature; 0 until it is made, and where it cannot be


# All that one message wants. The Python objects are touched by who has the GIL alone.
cdef struct task_t:
    task_t* next
    PyObject* wanted  # keeps the keys alive
    PyObject* done
    Py_ssize_t count
    part_t[1] parts  # `count` of them


# Oldest first; empty where all is zero.
cdef struct list_t:
    task_t* first
    task_t* last
    Py_ssize_t count


# What a thread keeps from one signature to the next by the same key: making it costs some us.
cdef struct signer_t:
    void* key
    void* rsa
    void* ed25519


cdef int fill(part_t* part, PrivateKey key, bytes digest) except -1:
    if key is None:
        raise TypeError("a key is missing")
    if len(digest) != DIGEST:
        raise ValueError(f"a SHA-256 has {DIGEST} octets, not {len(digest)}")
    part.key, part.rsa, part.length = key.key, key.rsa, 0
    memcpy(part.digest, PyBytes_AS_STRING(digest), DIGEST)
    return 0


cdef bytes signature_of(part_t* part):
    if not part.length:
        raise ValueError("libcrypto cannot sign with the key")
    return PyBytes_FromStringAndSize(<char*>part.signature, part.length)


cdef void begin(signer_t* signer) noexcept nogil:
    signer.key = signer.rsa = signer.ed25519 = NULL


cdef void end(signer_t* signer) noexcept nogil:
    if signer.rsa != NULL:
        crypto.EVP_PKEY_CTX_free(signer.rsa)
    if signer.ed25519 != NULL:
        crypto.EVP_MD_CTX_free(signer.ed25519)
    begin(signer)


cdef void sign(signer_t* signer, part_t* part) noexcept nogil:
    cdef size_t length = LONGEST
    if signer.key != part.key:
        end(signer)
    if sign_rsa(signer, part, &length) if part.rsa else sign_ed25519(signer, part, &length):
        part.length = length
    else:
        end(signer)
        crypto.ERR_clear_error()  # or the next who asks in this thread, say ssl, finds it


cdef bint sign_rsa(signer_t* signer, part_t* part, size_t* length) noexcept nogil:
    if signer.rsa == NULL:
        signer.rsa, signer.key = crypto.EVP_PKEY_CTX_new(part.key, NULL), part.key
        if (
            signer.rsa == NULL
            or crypto.EVP_PKEY_sign_init(signer.rsa) <= 0
            or crypto.EVP_PKEY_CTX_ctrl_str(signer.rsa, "rsa_padding_mode", "pkcs1") <= 0
            or crypto.EVP_PKEY_CTX_ctrl_str(signer.rsa, "digest", "sha256") <= 0
        ):
            return False
    return crypto.EVP_PKEY_sign(signer.rsa, part.signature, length, part.digest, DIGEST) > 0


cdef bint sign_ed25519(signer_t* signer, part_t* part, size_t* length) noexcept nogil:
    if signer.ed25519 == NULL:
        signer.ed25519, signer.key = crypto.EVP_MD_CTX_new(), part.key
    # It is good for one signature.
    return (
        signer.ed25519 != NULL
        and crypto.EVP_DigestSignInit(signer.ed25519, NULL, NULL, NULL, part.key) > 0
        and crypto.EVP_DigestSign(
            signer.ed25519, part.signature, length, part.digest, DIGEST) > 0
    )


@cython.final
cdef class SignatureQueue:
    """Tasks for threads that sign, and what they have done.

    Neither side ever waits for the GIL of the other: `run`, which such a thread calls, lets go of
    it once. `descriptor` can be read as soon as something is done. The other methods are for one
    thread alone.
    """

    cdef readonly int descriptor
    cdef int threads
    cdef bint ready, closed
    cdef list_t pending  # not yet shown to the threads
    cdef pthread_mutex_t lock
    cdef pthread_cond_t work
    cdef list_t waiting, done  # both under the lock

    def __cinit__(self, int threads):
        """`threads` are going to run it."""
        self.threads = max(threads, 1)
        self.descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.descriptor < 0:
            raise OSError("no descriptor is left for eventfd")
        pthread_mutex_init(&self.lock, NULL)
        pthread_cond_init(&self.work, NULL)
        self.ready = True

    def __dealloc__(self):
        # No thread runs it any longer, or it would have it.
        if not self.ready:
            return
        release_all(&self.pending)
        release_all(&self.waiting)
        release_all(&self.done)
        pthread_cond_destroy(&self.work)
        pthread_mutex_destroy(&self.lock)
        close(self.descriptor)

    def submit(self, list wanted not None, done not None):
        """Have each (key, digest) of `wanted` signed; `collect` is going to name `done`.

        True if `flush` has to be called, once for all that is submitted until then: it wakes the
        threads, which costs as much as half a signature of Ed25519.
        """
        cdef Py_ssize_t i = 0, count = len(wanted)
        cdef task_t* task = <task_t*>malloc(sizeof(task_t) + count * sizeof(part_t))
        if task == NULL:
            raise MemoryError
        try:
            for key, digest in wanted:
                fill(&task.parts[i], key, digest)
                i += 1
        except BaseException:
            free(task)
            raise
        task.count = count
        task.wanted, task.done = <PyObject*>wanted, <PyObject*>done
        Py_INCREF(wanted)
        Py_INCREF(done)
        append(&self.pending, task)
        return self.pending.count == 1

    def flush(self):
        """Show the threads what was submitted."""
        cdef Py_ssize_t count = self.pending.count
        self._lock()
        join(&self.waiting, &self.pending)
        pthread_mutex_unlock(&self.lock)
        if count > 1:
            pthread_cond_broadcast(&self.work)
        elif count == 1:
            pthread_cond_signal(&self.work)

    cdef int _lock(self) except -1:
        """It is free but for moments; who has it then may have lost its core, though."""
        if pthread_mutex_trylock(&self.lock) != 0:
            with nogil:
                pthread_mutex_lock(&self.lock)
        return 0

    def run(self):
        """Sign what comes, until it is closed and nothing waits."""
        cdef list_t mine
        with nogil:
            while self._take(&mine):
                sign_all(&mine)
                self._give(&mine)

    cdef bint _take(self, list_t* mine) noexcept nogil:
        """A share of what waits, as soon as there is something; False at the end."""
        cdef Py_ssize_t share
        pthread_mutex_lock(&self.lock)
        while not (self.waiting.count or self.closed):
            pthread_cond_wait(&self.work, &self.lock)
        # The others' wake-ups are spared, and nobody sits idle meanwhile.
        share = (self.waiting.count + self.threads - 1) // self.threads
        split(&self.waiting, min(share, AT_ONCE), mine)
        pthread_mutex_unlock(&self.lock)
        return mine.count > 0

    cdef void _give(self, list_t* mine) noexcept nogil:
        cdef bint tell
        pthread_mutex_lock(&self.lock)
        tell = self.done.count == 0
        join(&self.done, mine)
        pthread_mutex_unlock(&self.lock)
        if tell:
            eventfd_write(self.descriptor, 1)

    def collect(self):
        """What is done since the last time: each `done`, with the signatures or a ValueError."""
        cdef uint64_t events
        cdef list_t mine
        cdef task_t* task
        cdef list result = []
        eventfd_read(self.descriptor, &events)
        self._lock()
        split(&self.done, self.done.count, &mine)
        pthread_mutex_unlock(&self.lock)
        try:
            task = mine.first
            while task != NULL:
                result.append((<object>task.done, signatures_of(task)))
                task = task.next
        finally:
            release_all(&mine)
        return result

    def close(self):
        """Let `run` return once nothing waits."""
        self.flush()
        self._lock()
        self.closed = True
        pthread_cond_broadcast(&self.work)
        pthread_mutex_unlock(&self.lock)


cdef void append(list_t* tasks, task_t* task) noexcept nogil:
    task.next = NULL
    if tasks.count:
        tasks.last.next = task
    else:
        tasks.first = task
    tasks.last = task
    tasks.count += 1


cdef void join(list_t* tasks, list_t* more) noexcept nogil:
    """Move all of `more` behind `tasks`."""
    if more.count:
        if tasks.count:
            tasks.last.next = more.first
        else:
            tasks.first = more.first
        tasks.last = more.last
        tasks.count += more.count
    more.first = more.last = NULL
    more.count = 0


cdef void split(list_t* tasks, Py_ssize_t most, list_t* head) noexcept nogil:
    """Move the first of `tasks`, so many at the most, into `head`."""
    cdef list_t rest = tasks[0]
    head.first = head.last = NULL
    head.count = 0
    while rest.count and head.count < most:
        head.last, rest.first = rest.first, rest.first.next
        rest.count -= 1
        head.count += 1
    if head.count:
        head.first = tasks.first
        head.last.next = NULL
    if not rest.count:
        rest.last = NULL
    tasks[0] = rest


cdef void sign_all(list_t* tasks) noexcept nogil:
    cdef task_t* task = tasks.first
    cdef signer_t signer
    cdef Py_ssize_t i
    begin(&signer)
    while task != NULL:
        for i in range(task.count):
            sign(&signer, &task.parts[i])
        task = task.next
    end(&signer)


cdef signatures_of(task_t* task):
    cdef Py_ssize_t i
    try:
        return [signature_of(&task.parts[i]) for i in range(task.count)]
    except ValueError as error:
        return error


cdef void release_all(list_t* tasks) noexcept:
    cdef task_t* task
    while tasks.first != NULL:
        task = tasks.first
        tasks.first = task.next
        Py_DECREF(<object>task.wanted)
        Py_DECREF(<object>task.done)
        free(task)
