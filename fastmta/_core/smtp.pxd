cpdef tuple parse_reply_line(bytes line)
