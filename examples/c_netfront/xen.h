/* Xen's headers, unmodified, with what they leave to those who include them. All layouts of this program are theirs. */
#ifndef XEN_H
#define XEN_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __XEN_INTERFACE_VERSION__ __XEN_LATEST_INTERFACE_VERSION__
#define xen_mb() atomic_thread_fence(memory_order_seq_cst)
#define xen_rmb() atomic_thread_fence(memory_order_acquire)
#define xen_wmb() atomic_thread_fence(memory_order_release)

#include <xen/grant_table.h>
#include <xen/io/netif.h>
#include <xen/io/ring.h>
#include <xen/io/xenbus.h>

enum {
    PAGE = 1 << XEN_PAGE_SHIFT,
    TX_SLOTS = __CONST_RING_SIZE(netif_tx, PAGE),
    RX_SLOTS = __CONST_RING_SIZE(netif_rx, PAGE),
};

/* RING_FINAL_CHECK_FOR_RESPONSES for who waits for more than the next response: "you will need to create a customised version". */
#define RING_FINAL_CHECK_AHEAD(_r, _ahead, _work_to_do) do {                                  \
    RING_IDX __ahead = (_ahead);                                                              \
    (_work_to_do) = *(volatile RING_IDX *)&(_r)->sring->rsp_prod - (_r)->rsp_cons >= __ahead; \
    if (_work_to_do) break;                                                                   \
    (_r)->sring->rsp_event = (_r)->rsp_cons + __ahead;                                        \
    xen_mb();                                                                                 \
    (_work_to_do) = *(volatile RING_IDX *)&(_r)->sring->rsp_prod - (_r)->rsp_cons >= __ahead; \
} while (0)

#endif
