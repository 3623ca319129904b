cpdef objection(envelope, offered)
cpdef str mail(envelope, offered)
cpdef str rcpt(recipient, offered)
cpdef str _addresses(envelope)
