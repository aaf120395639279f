/* Frames that no sound front end sends: to see what a back end makes of them. */
#ifndef FAULTS_H
#define FAULTS_H

#include "netfront.h"

extern const char *const fault_names[];

/* Send a frame of three slots and a GSO extra info, spoiled in the way of that name. Its slots are answered as the back end likes;
 * whether they are is in the counts. */
void send_spoiled(struct netfront *nf, unsigned fault, const uint8_t *frame, size_t length);

#endif
