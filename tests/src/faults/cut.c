// cut DIR: the power of the file system that DIR is on goes, as far as that file system can tell.
// What was not synced is not there after the next mount, the journal's own last part included.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>

#define FS_IOC_SHUTDOWN _IOR('X', 125, uint32_t)
#define NOLOGFLUSH 2

int main(int count, char **arguments) {
    uint32_t how = NOLOGFLUSH;
    int directory = count == 2 ? open(arguments[1], O_RDONLY | O_DIRECTORY) : -1;
    if (directory < 0 || ioctl(directory, FS_IOC_SHUTDOWN, &how) < 0) {
        perror("cut");
        return 1;
    }
    return 0;
}
