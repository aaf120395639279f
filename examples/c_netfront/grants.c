/* What both directions share: grants of pages to the back end's domain, notifications, and hold-off before sleeping. */
#include <errno.h>
#include <unistd.h>

#include "netfront.h"

void grant_access(struct netfront *nf, grant_ref_t ref, unsigned page, bool readonly)
{
    volatile grant_entry_v1_t *entry = &nf->grants[ref];
    entry->frame = page;
    entry->domid = DOM0;
    xen_wmb(); /* the entry is whole before it is valid */
    entry->flags = GTF_permit_access | (readonly ? GTF_readonly : 0);
}

bool end_access(struct netfront *nf, grant_ref_t ref)
{
    uint16_t flags = *(volatile uint16_t *)&nf->grants[ref].flags;
    do {
        if (flags & (GTF_reading | GTF_writing))
            return false;
    } while (!__atomic_compare_exchange_n(&nf->grants[ref].flags, &flags, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return true;
}

void netfront_notify(struct netfront *nf, bool due)
{
    uint64_t one = 1;
    if (!due)
        nf->counts.suppressed++;
    else if (write(nf->notify_fd, &one, sizeof one) == sizeof one || errno == EAGAIN) /* EAGAIN: pending as it is */
        nf->counts.notifications++;
}

bool netfront_arm(struct netfront *nf, unsigned room)
{
    int work = 0;
    if (nf->awaited > 1)
        RING_FINAL_CHECK_AHEAD(&nf->rx, nf->awaited, work);
    else
        RING_FINAL_CHECK_FOR_RESPONSES(&nf->rx, work);
    if (!work && room > 0)
        RING_FINAL_CHECK_AHEAD(&nf->tx, room, work);
    return work;
}
