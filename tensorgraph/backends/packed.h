/* Weights of int8 or bfloat16, one at a time: rows that are looked up. Products are the runtime's. */
TG_FN float tg_half(uint16_t q) { const uint32_t b = (uint32_t)q << 16; float f; memcpy(&f, &b, 4); return f; }
TG_FN float tg_byte(int8_t q) { return (float)q; }
